import fc from "fast-check";
import { expect, test } from "vitest";
import { sameSet } from "../../src/same-set.ts";
import { escalation } from "../../src/service-identity/escalation.ts";
import { covers, intersection } from "../../src/service-identity/permission-sets.ts";

// Two segments meet often; the third stands in no set, so that only a wildcard covers it.
const SEGMENTS = ["a", "ab"];
const WITH_FRESH = [...SEGMENTS, "fresh"];

const paths = (depth: number): string[][] =>
  depth === 0 ? [[]] : paths(depth - 1).flatMap((path) => WITH_FRESH.map((segment) => [...path, segment]));

/** Every concrete permission of one to four segments. */
const CONCRETE = [1, 2, 3, 4].flatMap(paths).map((path) => path.join("."));

const concrete = fc.array(fc.constantFrom(...SEGMENTS), { minLength: 1, maxLength: 3 }).map((path) => path.join("."));
const permission = fc.oneof(
  { weight: 6, arbitrary: concrete },
  { weight: 4, arbitrary: concrete.map((path) => `${path}.*`) },
  { weight: 1, arbitrary: fc.constant("*") },
);
const set = fc.uniqueArray(permission, { maxLength: 5 });

/** What covering means, segment by segment. */
const allows = (held: readonly string[], wanted: string): boolean =>
  held.some((one) => {
    const [own, asked] = [one.split("."), wanted.split(".")];
    if (own.at(-1) !== "*") return one === wanted;
    const stem = own.slice(0, -1);
    return asked.length > stem.length && stem.every((segment, at) => segment === asked[at]);
  });

const reach = (held: readonly string[]) => CONCRETE.filter((wanted) => allows(held, wanted));

test("`*` covers all, `org.*` every `org.…` but not `org`, and anything else itself alone", () => {
  expect(covers(["*"], "org.node.read")).toBe(true);
  expect(covers(["org.*"], "org.node.read")).toBe(true);
  expect(covers(["org.*"], "org")).toBe(false);
  expect(covers(["org.*"], "organ.read")).toBe(false);
  expect(covers(["org"], "org.node")).toBe(false);
  expect(covers(["org.node"], "org.*")).toBe(false);
  expect(covers(["org.node.*", "org.role.*"], "org.*")).toBe(false);
  expect(covers([], "org")).toBe(false);
});

test("a set covers a concrete permission exactly where the model says so", () => {
  const property = fc.property(set, (held) => {
    expect(CONCRETE.filter((wanted) => covers(held, wanted))).toEqual(reach(held));
  });
  fc.assert(property);
});

test("a set covers a wildcard exactly where it covers all that the wildcard does", () => {
  const property = fc.property(set, permission, (held, wanted) => {
    expect(covers(held, wanted)).toBe(reach([wanted]).every((one) => allows(held, one)));
  });
  fc.assert(property, { numRuns: 300 });
});

test("what is lacking is an escalation, which names it where the request does", () => {
  const property = fc.property(set, set, set, (held, named, present) => {
    const lacking = [...named, ...present].filter((one) => !covers(held, one));
    const refused = escalation(held, named, present);
    expect(refused !== undefined).toBe(lacking.length > 0);
    const { permission } = refused?.metadata ?? {};
    expect(permission).toBe(named.find((one) => lacking.includes(one)));
  });
  fc.assert(property);
  expect(escalation([], [])).toBeUndefined();
});

test("an intersection covers exactly what both cover", () => {
  const property = fc.property(set, set, (one, other) => {
    const both = reach(one).filter((wanted) => allows(other, wanted));
    expect(reach(intersection(one, other))).toEqual(both);
  });
  fc.assert(property, { numRuns: 300 });
});

test("an intersection is in order, has nothing that another of it covers, and does not depend on the sides", () => {
  const property = fc.property(set, set, (one, other) => {
    const both = intersection(one, other);
    expect(both).toEqual(intersection(other, one));
    expect(both).toEqual([...both].sort());
    for (const each of both)
      expect(
        covers(
          both.filter((p) => p !== each),
          each,
        ),
      ).toBe(false);
    expect(both.every((each) => covers(one, each) && covers(other, each))).toBe(true);
  });
  fc.assert(property, { numRuns: 300 });
});

test("two lists are the same set in any order, and not where one has more", () => {
  const property = fc.property(set, fc.infiniteStream(fc.nat()), (held, order) => {
    const shuffled = held.map((one) => [order.next().value ?? 0, one] as const).sort(([a], [b]) => a - b);
    expect(
      sameSet(
        held,
        shuffled.map(([, one]) => one),
      ),
    ).toBe(true);
    expect(sameSet(held, [...held, "other"])).toBe(false);
    expect(sameSet([...held, "other"], held)).toBe(false);
  });
  fc.assert(property);
});
