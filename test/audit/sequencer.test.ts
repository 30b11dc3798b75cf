import { randomInt, randomUUID } from "node:crypto";
import { getEventListeners } from "node:events";
import { pino } from "pino";
import { type CommonQueryMethods, type DatabasePool, sql } from "slonik";
import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { createAuditHead } from "../../src/audit/head.ts";
import { recordEvent } from "../../src/audit/record.ts";
import { sequence, startSequencer } from "../../src/audit/sequencer.ts";
import { parseConfig } from "../../src/config.ts";
import { type Database, openDatabase } from "../../src/db/pool.ts";
import { transact } from "../../src/db/transact.ts";
import { createLog } from "../../src/log.ts";
import { detached, waitingFor, waitingUntil } from "../../src/rpc/call.ts";
import { refusal } from "../../src/rpc/refusal.ts";
import { openPool } from "../support/admin.ts";
import { startDatabaseProxy } from "../support/database-proxy.ts";
import { type TestDatabase, createDatabase } from "../support/database.ts";
import { untilSomebodyWaits } from "../support/lock-waiters.ts";
import { openFor } from "../support/open-database.ts";
import { statementSchemas } from "../support/statement-schemas.ts";

const log = createLog("silent");
const nobody = { requestId: "test", actor: undefined, callerIfAny: undefined };
const BATCH = 2_000;

let database: TestDatabase;
let db: Database;
let pool: DatabasePool;

beforeAll(async () => {
  database = await createDatabase();
  const { database: settings } = parseConfig({ NODE_ENV: "test", DATABASE_POOL_MAX: "24" });
  db = openDatabase({ url: database.url, settings, log, interceptors: [statementSchemas] });
  pool = await openPool(database.url, 4);
});

afterAll(async () => {
  await db.end();
  await pool.end();
  await database.drop();
});

beforeEach(async () => {
  await pool.query(sql.unsafe`TRUNCATE audit_pending, audit_order, audit_events`);
  await pool.query(sql.unsafe`UPDATE audit_head SET position_val = 0`);
});

/** Records an event about a thing of its own in one transaction, that others overtake now and then; answers with the thing. */
const write = async (outcome: "commit" | "rollback"): Promise<string> => {
  const entityId = randomUUID();
  const body = async (tx: Parameters<Parameters<typeof transact>[2]>[0]) => {
    await recordEvent(tx, nobody, { action: "x.y", tenantId: undefined, entityKind: "tenant", entityId });
    for (let n = randomInt(20); n > 0; n--) await tx.query(sql.unsafe`SELECT 1`);
    if (outcome === "rollback") throw refusal("CANCELLED");
    return entityId;
  };
  return transact(db, detached(), body).catch(() => "");
};

const orderRow = z.object({ position_val: z.bigint(), entity_id: z.string() });

/** What a watcher does: reads on after the last position that it saw. */
const readOn = async (seen: z.output<typeof orderRow>[]) => {
  const last = seen.at(-1)?.position_val ?? 0n;
  const rows = await pool.any(sql.type(orderRow)`
    SELECT o.position_val, e.entity_id FROM audit_order o JOIN audit_events e ON e.audit_id = o.audit_id
    WHERE o.position_val > ${last} ORDER BY o.position_val LIMIT 50`);
  seen.push(...rows);
};

/** How many events wait, and how far the head is. */
const state = (connection: CommonQueryMethods = pool) =>
  connection.one(sql.type(z.object({ pending: z.number(), ordered: z.number(), head: z.number() }))`
    SELECT (SELECT count(*)::int4 FROM audit_pending) AS pending, (SELECT count(*)::int4 FROM audit_order) AS ordered,
      (SELECT position_val::int4 FROM audit_head) AS head`);

test("who reads on by position sees each committed event once, while 16 write and three give positions", async () => {
  const committed: string[] = [];
  const followers: [string, string][] = [];
  const seen: z.output<typeof orderRow>[] = [];
  let writing = true;
  const writer = async () => {
    let before = "";
    for (let n = 0; n < 40; n++) {
      if (n % 5 === 4) await write("rollback");
      const thing = await write("commit");
      // Each begins after the former was committed: it must come after it.
      if (before) followers.push([before, thing]);
      committed.push((before = thing));
    }
  };
  const sequencer = async () => {
    while (writing || (await state()).pending > 0) await sequence(db);
  };
  const reader = async () => {
    while (writing || seen.length < committed.length) await readOn(seen);
  };
  const writers = Promise.all(Array.from({ length: 16 }, writer)).finally(() => (writing = false));
  await Promise.all([writers, sequencer(), sequencer(), sequencer(), reader()]);

  expect(seen.map(({ position_val }) => position_val)).toEqual(seen.map((_, index) => BigInt(index + 1)));
  expect(seen.map(({ entity_id }) => entity_id).toSorted()).toEqual(committed.toSorted());
  const place = new Map(seen.map(({ entity_id }, index) => [entity_id, index]));
  expect(followers.filter(([before, after]) => place.get(before)! > place.get(after)!)).toEqual([]);
  expect(await state()).toEqual({ pending: 0, ordered: committed.length, head: committed.length });
});

/** Events whose times run against their ids. */
const plant = async (count: number) => {
  await pool.query(sql.unsafe`
    WITH event AS (
      INSERT INTO audit_events (audit_id, action_key, entity_kind_code, entity_id, occurred_utc)
      SELECT lpad(to_hex(n), 32, '0')::uuid, 'x.y', 'tenant', gen_random_uuid(), now() - n * interval '1 second'
      FROM generate_series(1, ${count}::int4) n
      RETURNING audit_id
    )
    INSERT INTO audit_pending (audit_id) SELECT e.audit_id FROM event e`);
};

test("a backlog goes in batches, each in the order of its times", async () => {
  await plant(2 * BATCH + 10);
  const moved = [await sequence(db), await sequence(db), await sequence(db), await sequence(db)];
  expect(moved).toEqual([BATCH, BATCH, 10, 0]);
  expect(await state()).toEqual({ pending: 0, ordered: 2 * BATCH + 10, head: 2 * BATCH + 10 });
  const backward = await pool.any(sql.type(z.object({ position_val: z.bigint() }))`
    SELECT o.position_val FROM audit_order o JOIN audit_events e ON e.audit_id = o.audit_id
    JOIN audit_order p ON p.position_val = o.position_val - 1 JOIN audit_events f ON f.audit_id = p.audit_id
    WHERE f.occurred_utc > e.occurred_utc ORDER BY o.position_val`);
  expect(backward.map(({ position_val }) => position_val)).toEqual([BATCH + 1, 2 * BATCH + 1].map(BigInt));
});

test("one at a time: who finds another at it leaves at once, and writers wait for nobody", async () => {
  await plant(3);
  await pool.transaction(async (tx) => {
    await tx.query(sql.unsafe`SELECT 1 FROM audit_head FOR UPDATE`);
    expect(await sequence(db)).toBe(0);
    expect(await write("commit")).not.toBe("");
    expect(await state(tx)).toEqual({ pending: 4, ordered: 0, head: 0 });
  });
  expect(await sequence(db)).toBe(4);
});

test("one that is cut off in its move, or frozen, holds the others up for seconds alone", async () => {
  await plant(3);
  const proxy = await startDatabaseProxy(database.url);
  const cutOff = openFor(proxy.url, { DATABASE_STATEMENT_TIMEOUT: "60s" });
  onTestFinished(() => proxy.close());
  await pool.transaction(async (tx) => {
    await tx.query(sql.unsafe`SELECT 1 FROM audit_pending FOR UPDATE`);
    sequence(cutOff).catch(() => undefined);
    await untilSomebodyWaits(tx);
    proxy.swallowExisting();
  });
  await expect.poll(() => sequence(db)).toBe(3);
});

test("a move that fails moves nothing, says so once, and is tried again", async () => {
  await plant(3);
  await pool.query(sql.unsafe`
    INSERT INTO audit_order (position_val, audit_id) SELECT 2, p.audit_id FROM audit_pending p LIMIT 1`);
  const lines: string[] = [];
  const head = createAuditHead();
  const sequencer = startSequencer({
    db,
    head,
    intervalMs: 10,
    log: pino({ level: "warn" }, { write: (line) => void lines.push(line) }),
    ready: () => true,
  });
  onTestFinished(() => sequencer.stop());
  await expect.poll(() => lines.length).toBe(1);
  expect(await state()).toEqual({ pending: 3, ordered: 1, head: 0 });
  await pool.query(sql.unsafe`DELETE FROM audit_order`);
  await expect.poll(() => head.position()).toBe(3n);
  expect(lines).toHaveLength(1);
  expect(await state()).toEqual({ pending: 0, ordered: 3, head: 3 });
  // Where it fails once more it is another fault.
  await pool.query(sql.unsafe`
    WITH event AS (
      INSERT INTO audit_events (audit_id, action_key, entity_kind_code) VALUES (gen_random_uuid(), 'x.y', 'tenant')
      RETURNING audit_id
    )
    INSERT INTO audit_order (position_val, audit_id) SELECT 4, e.audit_id FROM event e`);
  await write("commit");
  await expect.poll(() => lines.length).toBe(2);
});

test("a move of so many that their tenants are not looked up wakes everybody", async () => {
  await plant(1_500);
  let ready = false;
  const head = createAuditHead();
  const sequencer = startSequencer({ db, head, intervalMs: 5, log, ready: () => ready });
  onTestFinished(() => sequencer.stop());
  const woken = head.movedPast(0n, randomUUID(), waitingFor(5_000));
  ready = true;
  await woken;
  expect(head.position()).toBe(1_500n);
});

test("nothing is asked of a database that is away, nor after the end", async () => {
  await plant(3);
  let ready = false;
  const asked: boolean[] = [];
  const head = createAuditHead();
  const sequencer = startSequencer({
    db,
    head,
    intervalMs: 5,
    log,
    ready: () => {
      asked.push(ready);
      return ready;
    },
  });
  await expect.poll(() => asked.length).toBeGreaterThan(5);
  expect(await state()).toMatchObject({ pending: 3 });
  ready = true;
  await expect.poll(() => head.position()).toBe(3n);
  await sequencer.stop();
  const { length } = asked;
  await write("commit");
  expect(await state()).toMatchObject({ pending: 1 });
  expect(asked).toHaveLength(length);
});

test("the head wakes those whose tenant has news, those who watch all, and everybody after a great move", async () => {
  const head = createAuditHead();
  const woken: string[] = [];
  const controller = new AbortController();
  const waiting = waitingUntil(controller.signal);
  const wait = (name: string, tenantId: string | undefined) =>
    void head.movedPast(head.position(), tenantId, waiting).then(
      () => woken.push(name),
      () => woken.push(`${name} gave up`),
    );
  for (const [name, tenantId] of [
    ["ann", "a"],
    ["bob", "b"],
    ["cid", "c"],
    ["all", undefined],
  ] as const)
    wait(name, tenantId);
  head.advance(5n, new Set(["a"]));
  await expect.poll(() => woken).toEqual(["ann", "all"]);
  head.advance(5n, undefined);
  await head.movedPast(4n, "b", waiting);
  expect(woken).toEqual(["ann", "all"]);
  head.advance(6n, undefined);
  await expect.poll(() => woken).toEqual(["ann", "all", "bob", "cid"]);
  // A watch waits thousands of times by one signal.
  expect(getEventListeners(controller.signal, "abort")).toEqual([]);
  wait("dan", "d");
  head.restart(4n);
  await expect.poll(() => woken.at(-1)).toBe("dan");
  expect(head.position()).toBe(4n);
  await head.movedPast(6n, "d", waiting);
  wait("bob", "b");
  controller.abort(new Error("gone"));
  await expect.poll(() => woken.at(-1)).toBe("bob gave up");
  await expect(head.movedPast(4n, "b", waiting)).rejects.toThrow("gone");
});
