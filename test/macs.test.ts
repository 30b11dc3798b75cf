import { expect, test } from "vitest";
import { createMacs } from "../src/macs.ts";

const OLD = { version: 1, key: Buffer.alloc(32, 1) };
const NEW = { version: 2, key: Buffer.alloc(32, 2) };

test("a MAC stands for one purpose alone", () => {
  const { tag, matches } = createMacs([OLD]);
  expect(matches("invitation", "text", tag("invitation", "text"))).toBe(true);
  expect(matches("invitation-hash", "text", tag("invitation", "text"))).toBe(false);
  expect(matches("credential", "text", tag("invitation", "text"))).toBe(false);
});

test("what is looked up may have been made under any pepper, and what is made is under the last", () => {
  const both = createMacs([OLD, NEW]);
  const [old, newest] = [OLD, NEW].map((pepper) => createMacs([pepper]).tag("network", "192.0.2.0/24"));
  expect(both.tags("network", "192.0.2.0/24")).toEqual([old, newest]);
  expect(both.tag("network", "192.0.2.0/24")).toBe(newest);
});

test("a tag of a pepper that is not configured matches nothing, whatever its MAC", () => {
  const { tag, matches } = createMacs([NEW]);
  expect(matches("network", "text", tag("network", "text").replace("2:", "1:"))).toBe(false);
});

test("a tag under an older pepper still matches, and under a dropped one does not", () => {
  const tag = createMacs([OLD]).tag("credential", "secret");
  expect(createMacs([OLD, NEW]).matches("credential", "secret", tag)).toBe(true);
  expect(createMacs([NEW]).matches("credential", "secret", tag)).toBe(false);
  expect(createMacs([{ ...NEW, version: 1 }]).matches("credential", "secret", tag)).toBe(false);
  for (const broken of ["", "1:", ":", "1", "1:AAAA", "x:y:z"]) {
    expect(createMacs([OLD]).matches("credential", "secret", broken)).toBe(false);
  }
});
