import { type CommonQueryMethods, sql } from "slonik";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import type { Database } from "../../src/db/pool.ts";
import { type Tx, queryAtEnd, read, transact } from "../../src/db/transact.ts";
import { Call, detached } from "../../src/rpc/call.ts";
import { Refusal, refusal } from "../../src/rpc/refusal.ts";
import { databaseName } from "../support/admin.ts";
import { countOf, createCounters, increment, insert, selectCount } from "../support/counters.ts";
import { startDatabaseProxy } from "../support/database-proxy.ts";
import { type TestDatabase, createEmptyDatabase } from "../support/database.ts";
import { cancellable, openFor, pidOf, reasonOf, selectSetting } from "../support/open-database.ts";

let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
  await createCounters(database.url);
});
afterAll(() => database.drop());

const selectSleep = (ms: number) => sql.type(z.object({ pg_sleep: z.string() }))`
  SELECT pg_sleep(${ms / 1_000})::text AS pg_sleep`;

const selectOpenTransactions = sql.type(z.object({ count: z.bigint() }))`
  SELECT count(*) FROM pg_stat_activity
  WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()`;

const settingOf = (connection: CommonQueryMethods, name: string) => connection.oneFirst(selectSetting(name));

test("a refusal that a body returns is thrown once what it wrote is committed", async () => {
  const db = openFor(database.url);
  const work = transact(db, detached(), async (tx) => {
    await tx.query(insert("returned"));
    return refusal("TENANT_NOT_FOUND");
  });
  expect(await reasonOf(work)).toBe("TENANT_NOT_FOUND");
  expect(await countOf(db, "returned")).toBe(0);
});

test("a refusal that a body throws rolls back", async () => {
  const db = openFor(database.url);
  const work = transact(db, detached(), async (tx) => {
    await tx.query(insert("thrown"));
    throw refusal("TENANT_NOT_FOUND");
  });
  expect(await reasonOf(work)).toBe("TENANT_NOT_FOUND");
  expect(await countOf(db, "thrown")).toBeUndefined();
});

test("transactions and single statements are READ COMMITTED, whatever the database's default is", async () => {
  const db = openFor(database.url);
  const name = databaseName(database.url);
  const setDefault = (level: string) => {
    const text = sql.unsafe`
      ALTER DATABASE ${sql.identifier([name])} SET default_transaction_isolation TO ${sql.identifier([level])}`;
    return read(db, detached(), (connection) => connection.query(text));
  };
  await setDefault("serializable");
  const later = openFor(database.url);
  expect(await transact(later, detached(), (tx) => settingOf(tx, "transaction_isolation"))).toBe("read committed");
  expect(await read(later, detached(), (c) => settingOf(c, "transaction_isolation"))).toBe("read committed");
  await setDefault("read committed");
});

const faults: [string, (db: Database) => Promise<unknown>][] = [
  ["a unique violation in a transaction", (db) => transact(db, detached(), (tx) => tx.query(insert("taken")))],
  ["a unique violation of a plain statement", (db) => read(db, detached(), (c) => c.query(insert("taken")))],
  ["a check violation", (db) => read(db, detached(), (c) => c.query(insert("check", 100)))],
  ["a value that is none", (db) => read(db, detached(), (c) => c.query(sql.unsafe`SELECT ${"x"}::int`))],
  ["a row too few", (db) => read(db, detached(), (c) => c.one(selectCount("nobody")))],
  [
    "a row too many",
    (db) =>
      read(db, detached(), (c) => c.maybeOne(sql.type(z.object({ n: z.number() }))`SELECT unnest(ARRAY[1, 2]) AS n`)),
  ],
  [
    "a row that breaks its schema",
    (db) => read(db, detached(), (c) => c.one(sql.type(z.object({ a: z.string() }))`SELECT 1 AS a`)),
  ],
  ["a statement timeout", (db) => read(db, detached(), (c) => c.one(selectSleep(2_000)))],
  ["a thrown refusal", (db) => transact(db, detached(), () => Promise.reject(refusal("TENANT_NOT_FOUND")))],
  ["a returned refusal", (db) => transact(db, detached(), () => Promise.resolve(refusal("TENANT_NOT_FOUND")))],
];

test.each(faults)("%s leaves the connection as it was", async (_name, fail) => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1", DATABASE_STATEMENT_TIMEOUT: "100ms" });
  await read(db, detached(), (c) =>
    c.query(sql.unsafe`
    INSERT INTO counters (id, count) VALUES ('taken', 0) ON CONFLICT DO NOTHING`),
  );
  const before = await pidOf(db);
  await expect(fail(db)).rejects.toThrow();
  expect(await pidOf(db)).toBe(before);
});

test("a call that is cancelled leaves the connection as it was, and what it wrote is rolled back", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  const before = await pidOf(db);
  const waiting = cancellable();
  const written = Promise.withResolvers<undefined>();
  const work = transact(db, waiting, async (tx: Tx) => {
    await tx.query(insert("cancelled"));
    written.resolve(undefined);
    await tx.one(selectSleep(200));
  });
  await written.promise;
  const cancelledAt = performance.now();
  waiting.cancel();
  expect(await reasonOf(work)).toBe("CANCELLED");
  expect(performance.now() - cancelledAt).toBeLessThan(150);
  expect(await pidOf(db)).toBe(before);
  expect(await countOf(db, "cancelled")).toBeUndefined();
});

test("a statement's time limit is DATABASE_UNAVAILABLE", async () => {
  const db = openFor(database.url, { DATABASE_STATEMENT_TIMEOUT: "100ms" });
  const started = performance.now();
  expect(await reasonOf(read(db, detached(), (c) => c.one(selectSleep(3_000))))).toBe("DATABASE_UNAVAILABLE");
  expect(performance.now() - started).toBeLessThan(1_500);
});

test("a lock that is waited for as long as the database allows is DATABASE_UNAVAILABLE", async () => {
  const db = openFor(database.url);
  await read(db, detached(), (c) => c.query(insert("locked")));
  const reason = transact(db, detached(), async (tx) => {
    await tx.query(increment("locked"));
    return reasonOf(
      transact(db, detached(), async (other) => {
        await other.query(sql.unsafe`SET LOCAL lock_timeout = '50ms'`);
        await other.query(increment("locked"));
      }),
    );
  });
  expect(await reason).toBe("DATABASE_UNAVAILABLE");
});

test("a deadline that is nearer cuts the statement of a transaction off", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  const before = await pidOf(db);
  const call = new Call("deadline", 200);
  const started = performance.now();
  const work = call.outcome(() => transact(db, call, (tx) => tx.one(selectSleep(4_000))));
  expect(await reasonOf(work)).toBe("DEADLINE");
  expect(performance.now() - started).toBeLessThan(1_000);
  // The only connection is free again long before the statement would have ended by itself.
  expect(await pidOf(db)).toBe(before);
  expect(performance.now() - started).toBeLessThan(2_000);
  expect(await read(db, detached(), (c) => settingOf(c, "statement_timeout"))).toBe("5s");
});

test("a statement outlives its call by a little, so that the call ends by its deadline and not by a fault", async () => {
  const db = openFor(database.url);
  const waiting = { ...detached(), remainingMs: () => 1_000 };
  expect(await transact(db, waiting, (tx) => settingOf(tx, "statement_timeout"))).toBe("1050ms");
});

test("a transaction may have a time limit of its own for its statements, shorter or longer", async () => {
  const db = openFor(database.url, { DATABASE_STATEMENT_TIMEOUT: "200ms", DATABASE_POOL_MAX: "1" });
  const before = await pidOf(db);
  const asleep = (ms: number, statementTimeoutMs: number) =>
    reasonOf(transact(db, detached(), (tx) => tx.one(selectSleep(ms)), { statementTimeoutMs }));
  // Beyond both the connection's own limit and the time after which a silent server is given up.
  expect(await asleep(1_000, 5_000)).toBe("answered");
  expect(await asleep(2_000, 50)).toBe("DATABASE_UNAVAILABLE");
  expect(await asleep(2_000, 300)).toBe("DATABASE_UNAVAILABLE");
  // It was the transaction's alone.
  expect(await read(db, detached(), (c) => settingOf(c, "statement_timeout"))).toBe("200ms");
  expect(await pidOf(db)).toBe(before);
});

test("a deadline bounds a transaction that has a longer time limit of its own", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  const before = await pidOf(db);
  const call = new Call("deadline", 200);
  const started = performance.now();
  const work = transact(db, call, (tx) => tx.one(selectSleep(4_000)), { statementTimeoutMs: 60_000 });
  expect(await reasonOf(call.outcome(() => work))).toBe("DEADLINE");
  expect(await pidOf(db)).toBe(before);
  expect(performance.now() - started).toBeLessThan(2_000);
});

test("a hung connection is given up soon after its call's deadline, whatever time limit its transaction has", async () => {
  const proxy = await startDatabaseProxy(database.url);
  onTestFinished(() => proxy.close());
  const db = openFor(proxy.url, { DATABASE_POOL_MAX: "1" });
  await pidOf(db);
  proxy.swallowExisting();
  const call = new Call("hung", 200);
  const work = transact(db, call, (tx) => tx.one(selectSleep(0)), { statementTimeoutMs: 60_000 });
  expect(await reasonOf(call.outcome(() => work))).toBe("DEADLINE");
  await expect.poll(() => db.load().inside, { timeout: 2_000 }).toBe(0);
});

test("so is one that hangs late, in the statement with which the commit goes", async () => {
  const proxy = await startDatabaseProxy(database.url);
  onTestFinished(() => proxy.close());
  const db = openFor(proxy.url, { DATABASE_POOL_MAX: "1" });
  const call = new Call("hung", 1_500);
  const hang = async (tx: Tx) => {
    await tx.one(selectSleep(1_000));
    proxy.swallowExisting();
    await queryAtEnd(tx, selectSleep(0));
  };
  const work = transact(db, call, hang, { statementTimeoutMs: 60_000 });
  expect(await reasonOf(call.outcome(() => work))).toBe("DEADLINE");
  await expect.poll(() => db.load().inside, { timeout: 2_000 }).toBe(0);
});

test("a transaction may take longer than one statement may", async () => {
  const db = openFor(database.url, { DATABASE_STATEMENT_TIMEOUT: "300ms" });
  const work = transact(db, detached(), async (tx) => {
    for (let statement = 0; statement < 5; statement++) await tx.one(selectSleep(200));
    return "done";
  });
  expect(await work).toBe("done");
});

test("work that waits for a place is not begun once nobody waits for it", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  let begun = 0;
  const first = transact(db, detached(), (tx) => tx.one(selectSleep(300)));
  const waiting = cancellable();
  const second = transact(db, waiting, () => Promise.resolve(begun++));
  const third = transact(db, detached(), () => Promise.resolve(begun++));
  waiting.cancel();
  expect(await reasonOf(second)).toBe("CANCELLED");
  await first;
  await third;
  expect(begun).toBe(1);
});

test("while down, what is under way is refused at once and never committed", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  const [written, go] = [Promise.withResolvers<undefined>(), Promise.withResolvers<undefined>()];
  const inside = transact(db, detached(), async (tx) => {
    await tx.query(insert("down"));
    written.resolve(undefined);
    await go.promise;
  });
  const queued = transact(db, detached(), (tx) => tx.query(insert("queued")));
  await written.promise;
  db.setDown(true);
  expect(await Promise.all([inside, queued].map(reasonOf))).toEqual(["DATABASE_UNAVAILABLE", "DATABASE_UNAVAILABLE"]);
  expect(await reasonOf(countOf(db, "down"))).toBe("DATABASE_UNAVAILABLE");
  db.setDown(false);
  expect(db.load()).toEqual({ inside: 0, waiting: 0 });
  expect(await countOf(db, "down")).toBeUndefined();
  go.resolve(undefined);
  await expect.poll(() => read(db, detached(), (c) => c.oneFirst(selectOpenTransactions))).toBe(0n);
  expect([await countOf(db, "down"), await countOf(db, "queued")]).toEqual([undefined, undefined]);
});

test("a row that breaks its schema is an error without its values", async () => {
  const db = openFor(database.url);
  const statement = sql.type(z.object({ a: z.number() }))`SELECT 'a-secret' AS a`;
  const error = await read(db, detached(), (c) => c.one(statement)).catch((thrown: unknown) => thrown);
  expect(error).not.toBeInstanceOf(Refusal);
  expect((error as Error).message).not.toContain("a-secret");
});
