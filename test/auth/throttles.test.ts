import { type DatabasePool, sql } from "slonik";
import { beforeAll, expect, test } from "vitest";
import { z } from "zod";
import { createThrottles } from "../../src/auth/throttles.ts";
import { createLog } from "../../src/log.ts";
import { detached } from "../../src/rpc/call.ts";
import { holdLock } from "../support/held-up.ts";
import { cancellable } from "../support/open-database.ts";
import {
  LOWERED,
  type Replicas,
  begin,
  configOf,
  count,
  countedOf,
  macs,
  newTenant,
  openReplicas,
  tryOf,
} from "../support/throttles.ts";

const MINUTE_MS = 60_000;

let pool: DatabasePool;
let url: string;
let replicas: Replicas["replicas"];
let throttlesOf: Replicas["throttlesOf"];
beforeAll(async () => {
  ({ pool, url, replicas, throttlesOf } = await openReplicas());
});

const totalHits = async () =>
  Number(await pool.oneFirst(sql.type(z.object({ sum: z.bigint().nullable() }))`SELECT sum(hit_count) FROM throttles`));

test("one identifier from one address has 10 tries in 10 minutes, from all 30, an address 100", async () => {
  const throttles = throttlesOf();
  const tenantId = newTenant();
  expect(await countedOf(throttles, 12, () => tryOf(tenantId, "ann@example.com", "192.0.2.1"))).toBe(10);
  expect(await countedOf(throttles, 30, (n) => tryOf(tenantId, "ann@example.com", `198.51.${n}.1`))).toBe(20);
  expect(await countedOf(throttles, 105, (n) => tryOf(tenantId, `user${n}@example.com`, "203.0.113.1"))).toBe(100);
});

test("a tenant has 5,000 tries in 10 minutes", async () => {
  const throttles = throttlesOf();
  const tenantId = newTenant();
  expect(await count(throttles, tryOf(tenantId))).toBeUndefined();
  await pool.query(sql.unsafe`UPDATE throttles SET hit_count = 4999 WHERE hit_count = 1 AND window_end_utc = (
    SELECT max(window_end_utc) FROM throttles)`);
  expect(await count(throttles, tryOf(tenantId))).toBeUndefined();
  expect(await count(throttles, tryOf(tenantId))).toBeGreaterThan(9 * MINUTE_MS);
  expect(await count(throttles, tryOf(newTenant()))).toBeUndefined();
});

test("a refused try counts in no bucket", async () => {
  const throttles = throttlesOf(LOWERED);
  const tenantId = newTenant();
  expect(await countedOf(throttles, 20, () => tryOf(tenantId, "ann@example.com", "192.0.2.1"))).toBe(3);
  expect(await countedOf(throttles, 20, (n) => tryOf(tenantId, `user${n}@example.com`, "192.0.2.1"))).toBe(4);
  expect(await countedOf(throttles, 20, (n) => tryOf(tenantId, `user${n}@example.com`, `198.51.${n}.1`))).toBe(2);
});

test("each refused try is told of by its act, and no other", async () => {
  const told: string[] = [];
  const log = createLog("silent");
  const options = {
    db: replicas[0]!,
    macs,
    config: configOf(LOWERED),
    log,
    onRefused: (act: string) => told.push(act),
  };
  const throttles = createThrottles(options);
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  expect(await countedOf(throttles, 5, () => attempt)).toBe(3);
  expect(await countedOf(throttles, 4, () => ({ ...attempt, act: "code" }))).toBe(3);
  expect(told).toEqual(["login", "login", "code"]);
});

test("a try that cannot be given back fails nothing: what succeeded is the answer", async () => {
  const { succeed } = await begin(throttlesOf(LOWERED), tryOf(newTenant(), "ann@example.com", "192.0.2.1"));
  await pool.query(sql.unsafe`ALTER TABLE throttles ADD CONSTRAINT unwritable CHECK (false) NOT VALID`);
  try {
    await succeed();
  } finally {
    await pool.query(sql.unsafe`ALTER TABLE throttles DROP CONSTRAINT unwritable`);
  }
});

test.each([
  ["an IPv4 address by its /24", "192.0.2.1", "192.0.2.254", "192.0.3.1"],
  ["an IPv6 address by its /64", "2001:db8::1", "2001:db8::ffff:0:1", "2001:db8:0:1::1"],
  ["an IPv4 address in IPv6 as IPv4", "::ffff:192.0.2.1", "192.0.2.9", "::ffff:192.0.4.1"],
])("%s", async (_name, ip, neighbour, stranger) => {
  const throttles = throttlesOf({ THROTTLE_ADDRESS: "2" });
  const tenantId = newTenant();
  expect(await countedOf(throttles, 3, (n) => tryOf(tenantId, `user${n}@example.com`, ip))).toBe(2);
  expect(await count(throttles, tryOf(tenantId, "ann@example.com", neighbour))).toBeDefined();
  expect(await count(throttles, tryOf(tenantId, "ann@example.com", stranger))).toBeUndefined();
});

test("without an address no address is counted, and the others are", async () => {
  const throttles = throttlesOf(LOWERED);
  const tenantId = newTenant();
  expect(await countedOf(throttles, 9, () => tryOf(tenantId, "ann@example.com"))).toBe(5);
  expect(await countedOf(throttles, 9, (n) => tryOf(tenantId, `user${n}@example.com`))).toBe(4);
});

test("without an identifier the address and the tenant are counted", async () => {
  const throttles = throttlesOf(LOWERED);
  const tenantId = newTenant();
  expect(await countedOf(throttles, 9, () => tryOf(tenantId, undefined, "192.0.2.1"))).toBe(7);
  expect(await countedOf(throttles, 9, (n) => tryOf(tenantId, undefined, `198.51.${n}.1`))).toBe(2);
});

test("nobody is locked out by others from a network that he logged in from", async () => {
  const throttles = throttlesOf(LOWERED);
  const tenantId = newTenant();
  expect(await countedOf(throttles, 20, (n) => tryOf(tenantId, "ann@example.com", `198.51.${n}.1`))).toBe(5);
  expect(await countedOf(throttles, 20, (n) => tryOf(tenantId, `user${n}@example.com`, "192.0.2.1"))).toBe(4);
  expect(await count(throttles, tryOf(tenantId, "bea@example.com", "203.0.113.1"))).toBeDefined();
  const home = () => tryOf(tenantId, "ann@example.com", "192.0.2.1", true);
  expect(await countedOf(throttles, 9, home)).toBe(3);
});

test("tries from a known network fill no bucket of others", async () => {
  const throttles = throttlesOf(LOWERED);
  const tenantId = newTenant();
  const home = (n: number) => tryOf(tenantId, `user${n % 20}@example.com`, "192.0.2.1", true);
  expect(await countedOf(throttles, 80, home)).toBe(60);
  expect(await countedOf(throttles, 20, (n) => tryOf(tenantId, "ann@example.com", `198.51.${n}.1`))).toBe(5);
});

test("acts, tenants and kinds of subject have buckets of their own, and a tenant's id has one form", async () => {
  const throttles = throttlesOf({ THROTTLE_TENANT: "1" });
  const tenantId = newTenant();
  expect(await count(throttles, tryOf(tenantId))).toBeUndefined();
  expect(await count(throttles, { ...tryOf(tenantId), act: "code" })).toBeUndefined();
  expect(await count(throttles, { ...tryOf(tenantId), act: "code-request" })).toBeUndefined();
  expect(await count(throttles, tryOf(tenantId.toUpperCase()))).toBeDefined();
  expect(await count(throttles, tryOf(newTenant()))).toBeUndefined();
});

test("what is given back was never counted", async () => {
  const throttles = throttlesOf(LOWERED);
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  for (let n = 0; n < 12; n++) await (await begin(throttles, attempt)).succeed();
  const { succeed } = await begin(throttles, attempt);
  expect(await countedOf(throttles, 9, () => attempt)).toBe(2);
  await succeed();
  expect(await countedOf(throttles, 9, () => attempt)).toBe(1);
});

test("who is refused for the sake of tries under way comes again soon, and for failed ones when the window ends", async () => {
  const throttles = throttlesOf(LOWERED);
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  const begun = [await begin(throttles, attempt), await begin(throttles, attempt), await begin(throttles, attempt)];
  expect(await count(throttles, attempt)).toBeLessThanOrEqual(1_000);
  await begun[0]!.fail();
  await begun[1]!.fail();
  expect(await count(throttles, attempt)).toBeLessThanOrEqual(1_000);
  await begun[2]!.succeed();
  expect(await count(throttles, attempt)).toBeUndefined();
  expect(await count(throttles, attempt)).toBeGreaterThan(9 * MINUTE_MS);
});

test("a try whose caller goes away while it is being counted is given back", async () => {
  const throttles = throttlesOf(LOWERED);
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  await count(throttles, attempt);
  const before = await totalHits();
  const lock = await holdLock(url, sql.unsafe`SELECT FROM throttles FOR NO KEY UPDATE`);
  const caller = cancellable();
  const left = throttles.count(caller, attempt);
  await expect.poll(lock.waiters).toBe(1);
  caller.cancel();
  await expect(left).rejects.toMatchObject({ reason: "CANCELLED" });
  // It waits for the same rows behind the other.
  const next = count(throttles, attempt);
  await expect.poll(lock.waiters).toBe(2);
  await lock.release();
  expect(await next).toBeUndefined();
  await expect.poll(totalHits).toBe(before + 4);
});

test("a try whose work throws is given back, and its error is the answer", async () => {
  const throttles = throttlesOf(LOWERED);
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  const fault = new Error("out of reach");
  for (let n = 0; n < 5; n++) {
    await expect(throttles.during(detached(), attempt, () => Promise.reject(fault))).rejects.toBe(fault);
  }
  const failing = () =>
    throttles.during(
      detached(),
      attempt,
      () => Promise.reject(fault),
      () => true,
    );
  for (let n = 0; n < 3; n++) await expect(failing()).rejects.toBe(fault);
  await expect(failing()).rejects.toMatchObject({ reason: "RATE_LIMITED" });
});

test("of 60 tries at once over two replicas exactly as many are counted as the bucket takes", async () => {
  const both = [throttlesOf(LOWERED, 0), throttlesOf(LOWERED, 1)] as const;
  for (const known of [true, false]) {
    const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1", known);
    const waits = await Promise.all(Array.from({ length: 60 }, (_, n) => count(both[n % 2 === 0 ? 0 : 1], attempt)));
    expect(waits.filter((wait) => wait === undefined)).toHaveLength(3);
  }
});

test("tries at once on crossing buckets end without a deadlock, and none is counted by halves", async () => {
  await pool.query(sql.unsafe`DELETE FROM throttles`);
  const both = [throttlesOf({}, 0), throttlesOf({}, 1)] as const;
  const tenantId = newTenant();
  const attempts = Array.from({ length: 200 }, (_, n) =>
    tryOf(tenantId, `user${n % 7}@example.com`, `198.51.${n % 5}.1`),
  );
  await Promise.all(
    attempts.map(async (attempt, n) => {
      const { succeed, fail } = await begin(both[n % 2 === 0 ? 0 : 1], attempt);
      await (n % 2 === 0 ? succeed() : fail());
    }),
  );
  // 100 stay counted in four buckets each.
  expect(await totalHits()).toBe(400);
});

test("with THROTTLES=off nothing is counted but what has limits of its own", async () => {
  await pool.query(sql.unsafe`DELETE FROM throttles`);
  const throttles = throttlesOf({ ...LOWERED, THROTTLES: "off" });
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  expect(await countedOf(throttles, 20, () => attempt)).toBe(20);
  expect(await totalHits()).toBe(0);
  const limits = [{ subject: ["ann@example.com"], max: 2, windowMs: MINUTE_MS }];
  const next = async (some = limits) => (await throttles.count(detached(), attempt, some)).nextMs;
  expect(await next()).toBe(0);
  expect(await next()).toBeGreaterThan(MINUTE_MS - 10_000);
  await expect(next()).rejects.toMatchObject({ reason: "RATE_LIMITED" });
  expect(await next([{ ...limits[0]!, windowMs: 0 }])).toBe(0);
});

test("what is given back leaves its limits as they were", async () => {
  const throttles = throttlesOf();
  const attempt = tryOf(newTenant(), "ann@example.com", "192.0.2.1");
  const limits = [{ subject: ["ann@example.com"], max: 1, windowMs: MINUTE_MS }];
  for (let round = 0; round < 3; round++) {
    const { nextMs, giveBack } = await throttles.count(detached(), attempt, limits);
    expect(nextMs).toBeGreaterThan(MINUTE_MS - 10_000);
    await expect(throttles.count(detached(), attempt, limits)).rejects.toMatchObject({ reason: "RATE_LIMITED" });
    await giveBack();
  }
});

test("counters say nothing of whom they count", async () => {
  const throttles = throttlesOf();
  const tenantId = newTenant();
  await count(throttles, tryOf(tenantId, "ann@example.com", "192.0.2.1"));
  const rows = await pool.any(sql.type(z.object({ throttle_key_hash: z.string() }))`
    SELECT throttle_key_hash FROM throttles`);
  for (const row of rows) expect(row.throttle_key_hash).toMatch(/^1:[\w-]{43}$/);
});
