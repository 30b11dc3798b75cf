import { getEventListeners } from "node:events";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type QuerySqlToken, sql } from "slonik";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { parseConfig } from "../../src/config.ts";
import { connectionUri } from "../../src/db/connections.ts";
import type { Database } from "../../src/db/pool.ts";
import { read, transact } from "../../src/db/transact.ts";
import { detached } from "../../src/rpc/call.ts";
import { administer, databaseName, databaseUrl } from "../support/admin.ts";
import { startDatabaseProxy } from "../support/database-proxy.ts";
import { type TestDatabase, createDatabase, createEmptyDatabase } from "../support/database.ts";
import { cancellable, openFor, reasonOf, selectSetting, settingOf } from "../support/open-database.ts";
import { countTimers } from "../support/timers.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
});
afterAll(() => database.drop());

const selectSleep = (ms: number) => sql.type(z.object({ pg_sleep: z.string() }))`
  SELECT pg_sleep(${ms / 1_000})::text AS pg_sleep`;
const selectOne = sql.type(z.object({ one: z.number() }))`SELECT 1 AS one`;

const pause = (db: Database, ms: number) => read(db, detached(), (c) => c.one(selectSleep(ms)));

/** Takes the only connection until told to let it go. */
const hold = (db: Database) => {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const done = read(db, detached(), () => promise);
  return () => {
    resolve(undefined);
    return done;
  };
};

test("a full pool serves in the order of arrival", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  const release = hold(db);
  const order: number[] = [];
  const uses = Array.from({ length: 20 }, (_, index) =>
    read(db, detached(), async (c) => {
      order.push(index);
      await c.one(selectOne);
    }),
  );
  expect(db.load()).toEqual({ inside: 1, waiting: 20 });
  await release();
  await Promise.all(uses);
  expect(order).toEqual(Array.from({ length: 20 }, (_, index) => index));
  expect(db.load()).toEqual({ inside: 0, waiting: 0 });
});

test("past the queue's length a use is OVERLOADED at once", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1", DATABASE_POOL_QUEUE: "2" });
  const release = hold(db);
  const queued = [pause(db, 0), pause(db, 0)];
  expect(await reasonOf(pause(db, 0))).toBe("OVERLOADED");
  await release();
  await Promise.all(queued);
});

test("past the wait a use is OVERLOADED and has left the queue", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1", DATABASE_POOL_WAIT: "100ms" });
  const release = hold(db);
  expect(await reasonOf(pause(db, 0))).toBe("OVERLOADED");
  expect(db.load()).toEqual({ inside: 1, waiting: 0 });
  await release();
});

test("one who gives up leaves the queue, and those behind keep their order", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  const release = hold(db);
  const order: string[] = [];
  const enter = (name: string, waiting = detached()) => read(db, waiting, async () => void order.push(name));
  const leaver = cancellable();
  const [first, second, third] = [enter("first"), enter("second", leaver), enter("third")];
  leaver.cancel();
  expect(await reasonOf(second)).toBe("CANCELLED");
  expect(db.load()).toEqual({ inside: 1, waiting: 2 });
  await release();
  await Promise.all([first, third]);
  expect(order).toEqual(["first", "third"]);
});

test("who was served leaves no listener with his call, and no timer", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  await pause(db, 0);
  const before = countTimers();
  const call = cancellable();
  const listeners = () => getEventListeners(call.signal, "abort").length;
  const release = hold(db);
  const uses = [read(db, call, (c) => c.one(selectOne)), transact(db, call, (tx) => tx.one(selectOne))];
  expect(listeners()).toBeGreaterThan(0);
  await release();
  await Promise.all(uses);
  expect(listeners()).toBe(0);
  expect(countTimers()).toBeLessThanOrEqual(before);
});

test("by default 1,000 at once wait and are served", async () => {
  const db = openFor(database.url);
  const uses = Array.from({ length: 1_000 }, () => transact(db, detached(), (tx) => tx.one(selectSleep(10))));
  await Promise.all(uses);
  expect(db.load()).toEqual({ inside: 0, waiting: 0 });
});

test("the environment sets size, time limits and idle time", async () => {
  const db = openFor(database.url, {
    DATABASE_POOL_MAX: "3",
    DATABASE_STATEMENT_TIMEOUT: "1234ms",
    DATABASE_IDLE_TIMEOUT: "1s",
  });
  expect(await settingOf(db, "statement_timeout")).toBe("1234ms");
  expect(await settingOf(db, "idle_in_transaction_session_timeout")).toBe("30s");
  await Promise.all(Array.from({ length: 9 }, () => pause(db, 20)));
  const watcher = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  const others = () =>
    read(watcher, detached(), (c) =>
      c.oneFirst(sql.type(z.object({ count: z.bigint() }))`
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
          AND query LIKE '%pg_sleep%'`),
    );
  expect(await others()).toBe(3n);
  await expect.poll(others, { timeout: 5_000 }).toBe(0n);
});

const throughProxy = async (env: Readonly<Record<string, string>>) => {
  const proxy = await startDatabaseProxy(database.url);
  onTestFinished(() => proxy.close());
  return { proxy, db: openFor(proxy.url, env) };
};

test("for PgBouncer no start-up parameter is sent that it refuses; a transaction sets its own time limits", async () => {
  const { proxy, db } = await throughProxy({ DATABASE_PGBOUNCER: "on", DATABASE_STATEMENT_TIMEOUT: "4321ms" });
  const limits = ["statement_timeout", "idle_in_transaction_session_timeout"];
  const own = await transact(db, detached(), async (tx) => {
    const values: string[] = [];
    for (const limit of limits) values.push(await tx.oneFirst(selectSetting(limit)));
    return values;
  });
  expect(own).toEqual(["4321ms", "30s"]);
  expect(await Promise.all(limits.map((limit) => settingOf(db, limit)))).toEqual(["0", "0"]);
  const parameters = proxy.startups.flatMap((startup) =>
    startup
      .slice(8)
      .split("\0")
      .filter((_, at) => at % 2 === 0),
  );
  // What PgBouncer tracks or knows: https://www.pgbouncer.org/config.html#ignore_startup_parameters
  const taken = ["user", "database", "client_encoding", "application_name", "datestyle", "timezone", ""];
  // Written otherwise than PostgreSQL reports it, it would be set anew for each transaction.
  expect(proxy.startups.join()).toContain(`datestyle\0${await settingOf(db, "datestyle")}\0`);
  expect(parameters.map((name) => name.toLowerCase()).filter((name) => !taken.includes(name))).toEqual([]);
});

const connections: [string, () => Database][] = [
  ["by itself", () => openFor(database.url)],
  ["for PgBouncer", () => openFor(database.url, { DATABASE_PGBOUNCER: "on" })],
  ["with options of its own", () => openFor(`${database.url}?options=-c%20jit%3Don`)],
];

test.each(connections)("%s: times are read, whatever style the database writes them in", async (_name, open) => {
  const name = sql.identifier([databaseName(database.url)]);
  await administer(database.url, sql.unsafe`ALTER DATABASE ${name} SET datestyle TO German`);
  onTestFinished(async () => {
    await administer(database.url, sql.unsafe`ALTER DATABASE ${name} RESET datestyle`);
  });
  const selectTime = sql.type(z.object({ at: z.number() }))`SELECT '2026-02-03 04:05:06+00'::timestamptz AS at`;
  const at = await read(open(), detached(), (c) => c.oneFirst(selectTime));
  expect(at).toBe(Date.UTC(2026, 1, 3, 4, 5, 6));
});

test("connections are told apart by the service's name, unless the URL has another", async () => {
  const { db } = await throughProxy({});
  expect(await settingOf(db, "application_name")).toBe("auth-service");
  expect(connectionUri("postgresql://h/d?application_name=mine", parseConfig({}).database)).toContain(
    "application_name=mine",
  );
});

test("without a statement timeout none is sent", async () => {
  const { proxy, db } = await throughProxy({ DATABASE_STATEMENT_TIMEOUT: "off" });
  expect(await settingOf(db, "statement_timeout")).toBe("0");
  expect(proxy.startups.join()).not.toContain("statement_timeout");
  const pgBouncer = openFor(database.url, { DATABASE_PGBOUNCER: "on", DATABASE_STATEMENT_TIMEOUT: "off" });
  expect(await transact(pgBouncer, detached(), (tx) => tx.oneFirst(selectSetting("statement_timeout")))).toBe("0");
});

test("no use costs a DISCARD ALL, and transactions say no more than they must", async () => {
  const { proxy, db } = await throughProxy({ DATABASE_POOL_MAX: "1" });
  await pause(db, 0);
  await transact(db, detached(), (tx) => tx.one(selectOne));
  await pause(db, 0);
  expect(proxy.startups).toHaveLength(1);
  expect(proxy.sent()).not.toMatch(/DISCARD|RESET|pg_type/);
  const begin = "START TRANSACTION ISOLATION LEVEL READ COMMITTED";
  expect(proxy.sent().match(/START TRANSACTION[A-Z ]*|COMMIT|SET LOCAL/g)).toEqual([begin, "COMMIT"]);
});

test("TLS that must verify refuses a server without it", async () => {
  const db = openFor(database.url, { DATABASE_TLS: "verify" });
  expect(await reasonOf(pause(db, 0))).toBe("DATABASE_UNAVAILABLE");
});

test("a file of authorities that is gone when connections are opened anew fails those, and ends nothing", async () => {
  const folder = await temporaryFolder();
  const file = join(folder, "ca.crt");
  await writeFile(file, "");
  const db = openFor(database.url, { DATABASE_TLS: "verify", DATABASE_TLS_CA_FILE: file });
  await rm(file);
  db.renew();
  expect(await reasonOf(pause(db, 0))).toBe("DATABASE_UNAVAILABLE");
});

test("a connection that is not answered within its time limit is DATABASE_UNAVAILABLE", async () => {
  const { proxy, db } = await throughProxy({ DATABASE_CONNECT_TIMEOUT: "200ms" });
  proxy.swallowNew();
  const started = performance.now();
  expect(await reasonOf(pause(db, 0))).toBe("DATABASE_UNAVAILABLE");
  expect(performance.now() - started).toBeLessThan(1_500);
  // Whoever wants to try again is asked first whether anybody still waits.
  expect(proxy.startups).toHaveLength(1);
  await proxy.pass();
  await pause(db, 0);
});

test("types arrive as the row schemas take them", async () => {
  const db = openFor(database.url);
  const statement = sql.type(z.record(z.string(), z.unknown()))`
    SELECT 9007199254740993 AS big, ARRAY[1, NULL]::int8[] AS bigs, '2024-01-02T03:04:05.678901Z'::timestamptz AS at,
      ARRAY['2024-01-02T03:04:05Z']::timestamptz[] AS ats, '2024-01-02'::date AS day, 1.50::numeric AS amount,
      '{"a":1}'::jsonb AS json, ARRAY['x']::text[] AS texts, '\\x01'::bytea AS bytes`;
  const row = await read(db, detached(), (c) => c.one(statement));
  expect(row).toEqual({
    big: 9007199254740993n,
    bigs: [1n, null],
    at: Date.parse("2024-01-02T03:04:05.678Z"),
    ats: [Date.parse("2024-01-02T03:04:05Z")],
    day: "2024-01-02",
    amount: 1.5,
    json: { a: 1 },
    texts: ["x"],
    bytes: Buffer.from([1]),
  });
});

test("connections to what has become a replica are not used again, though they answer", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "2" });
  const name = databaseName(database.url);
  const setReadOnly = (value: string) =>
    administer(
      databaseUrl(database.url, "postgres"),
      sql.unsafe`ALTER DATABASE ${sql.identifier([name])} SET default_transaction_read_only = ${sql.literalValue(value)}`,
    );
  const write = () => reasonOf(transact(db, detached(), (tx) => tx.query(sql.unsafe`CREATE TABLE written ()`)));
  await setReadOnly("on");
  await Promise.all([pause(db, 50), pause(db, 50)]);
  expect(await write()).toBe("DATABASE_UNAVAILABLE");
  await setReadOnly("off");
  expect(await write()).toBe("answered");
  expect(await settingOf(db, "default_transaction_read_only")).toBe("off");
});

test("a prepared statement whose columns a migration changes, or that is gone or another's, is told to come again, and then runs", async () => {
  const migrated = await createDatabase();
  onTestFinished(() => migrated.drop());
  const db = openFor(migrated.url, { DATABASE_POOL_MAX: "1" });
  const selectLabels = sql.prepared("select-labels", z.object({ tenant_label: z.string() }))`
    SELECT t.tenant_label FROM tenants t`;
  const ask = () => read(db, detached(), (connection) => connection.any(selectLabels));
  expect(await ask()).toEqual([]);
  await administer(migrated.url, sql.unsafe`ALTER TABLE tenants ALTER COLUMN tenant_label TYPE varchar(200)`);
  expect(await reasonOf(ask())).toBe("DATABASE_UNAVAILABLE");
  expect(await ask()).toEqual([]);

  // As behind a PgBouncer of which the service was told nothing.
  const tell = (statement: QuerySqlToken) => read(db, detached(), (connection) => connection.query(statement));
  await tell(sql.unsafe`DEALLOCATE ALL`);
  expect(await reasonOf(ask())).toBe("DATABASE_UNAVAILABLE");
  await tell(sql.unsafe`PREPARE "select-labels" AS SELECT 1`);
  expect(await reasonOf(ask())).toBe("DATABASE_UNAVAILABLE");
  expect(await ask()).toEqual([]);
});
