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
