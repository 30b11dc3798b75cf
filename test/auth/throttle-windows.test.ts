import fc from "fast-check";
import { type DatabasePool, sql } from "slonik";
import { beforeAll, expect, test } from "vitest";
import {
  LOWERED,
  type Replicas,
  begin,
  count,
  countedOf,
  newTenant,
  openReplicas,
  tryOf,
} from "../support/throttles.ts";

const MINUTE_MS = 60_000;

let pool: DatabasePool;
let throttlesOf: Replicas["throttlesOf"];
beforeAll(async () => {
  ({ pool, throttlesOf } = await openReplicas());
});

const passTime = (ms: number) =>
  pool.query(
    sql.unsafe`UPDATE throttles SET window_end_utc = window_end_utc - ${ms}::float8 * interval '1 millisecond'`,
  );

test("what is given back late takes nothing from another window", async () => {
  const throttles = throttlesOf(LOWERED);
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  const { succeed } = await begin(throttles, attempt);
  await passTime(11 * MINUTE_MS);
  expect(await countedOf(throttles, 3, () => attempt)).toBe(3);
  await succeed();
  expect(await count(throttles, attempt)).toBeDefined();
});

test("a full bucket says when its window ends, and then takes as many again", async () => {
  const throttles = throttlesOf(LOWERED);
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  expect(await countedOf(throttles, 3, () => attempt)).toBe(3);
  await passTime(4 * MINUTE_MS);
  const retryAfterMs = await count(throttles, attempt);
  expect(retryAfterMs).toBeGreaterThan(5.9 * MINUTE_MS);
  expect(retryAfterMs).toBeLessThanOrEqual(6 * MINUTE_MS);
  await passTime(retryAfterMs!);
  expect(await countedOf(throttles, 5, () => attempt)).toBe(3);
});

test("who fills a bucket in every window waits longer each time, and as short as at first after a quiet window", async () => {
  const throttles = throttlesOf(LOWERED);
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  const waits: number[] = [];
  const fill = async () => {
    expect(await countedOf(throttles, 3, () => attempt)).toBe(3);
    const wait = await count(throttles, attempt);
    waits.push(Math.round(wait! / MINUTE_MS));
    await passTime(wait!);
  };
  for (let n = 0; n < 5; n++) await fill();
  await passTime(11 * MINUTE_MS);
  await fill();
  expect(waits).toEqual([10, 20, 40, 60, 60, 10]);
});

test("a window that is not full ends in its time, though those before it were full", async () => {
  const throttles = throttlesOf(LOWERED);
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  for (let n = 0; n < 3; n++) {
    expect(await countedOf(throttles, 3, () => attempt)).toBe(3);
    await passTime((await count(throttles, attempt))!);
  }
  expect(await countedOf(throttles, 2, () => attempt)).toBe(2);
  await passTime(10 * MINUTE_MS);
  expect(await countedOf(throttles, 5, () => attempt)).toBe(3);
});

test.each([
  ["an identifier", 5, () => "ann@example.com"],
  ["a tenant", 9, (n: number) => `ann${n}@example.com`],
])("what is filled from many networks refuses for no longer than its window, however often: %s", async (_, max, of) => {
  const throttles = throttlesOf(LOWERED);
  const tenantId = newTenant();
  for (let n = 0; n < 4; n++) {
    expect(await countedOf(throttles, max, (i) => tryOf(tenantId, of(i), `198.51.${i}.1`))).toBe(max);
    const wait = await count(throttles, tryOf(tenantId, of(max), "192.0.2.1"));
    expect(wait).toBeLessThanOrEqual(10 * MINUTE_MS);
    await passTime(wait!);
  }
});

test("counts, gifts back and passing time do as a model does", async () => {
  const MAX = 3;
  const step = fc.oneof(
    { weight: 5, arbitrary: fc.constant("count" as const) },
    { weight: 2, arbitrary: fc.constant("give back" as const) },
    { weight: 1, arbitrary: fc.constant("next window" as const) },
  );
  const throttles = throttlesOf(LOWERED);
  const run = async (steps: readonly ("count" | "give back" | "next window")[]) => {
    const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1", true);
    let model = 0;
    let mine: (() => Promise<void>)[] = [];
    for (const one of steps) {
      if (one === "count") {
        const refused = await begin(throttles, attempt).then(
          ({ succeed }) => void mine.push(succeed),
          (error: unknown) => error,
        );
        expect(refused === undefined).toBe(model < MAX);
        if (model < MAX) model++;
      } else if (one === "give back") {
        const succeed = mine.pop();
        await succeed?.();
        if (succeed) model--;
      } else {
        await passTime(200 * MINUTE_MS);
        model = 0;
        mine = [];
      }
    }
  };
  await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 15 }), run), { numRuns: 25 });
});
