import { sql } from "slonik";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { parseConfig } from "../../src/config.ts";
import { answerMs } from "../../src/db/connections.ts";
import type { Database } from "../../src/db/pool.ts";
import { type Tx, read, transact } from "../../src/db/transact.ts";
import { detached } from "../../src/rpc/call.ts";
import { administer, databaseName, databaseUrl } from "../support/admin.ts";
import { openQueuePool } from "../../src/delivery/queue-pool.ts";
import { createLog } from "../../src/log.ts";
import { startDatabaseProxy } from "../support/database-proxy.ts";
import { type TestDatabase, createEmptyDatabase } from "../support/database.ts";
import { cancellable, openFor, pidOf, reasonOf, settingOf } from "../support/open-database.ts";
import { startSilentServer } from "../support/silent-server.ts";

let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
});
afterAll(() => database.drop());

const selectOne = sql.type(z.object({ one: z.number() }))`SELECT 1 AS one`;
const idle = (db: Database) => expect.poll(() => db.load().inside).toBe(0);

/** Does something in a transaction, then waits until told to do the rest. */
const begin = async (db: Database, rest: (tx: Tx) => Promise<unknown>) => {
  const [begun, go] = [Promise.withResolvers<undefined>(), Promise.withResolvers<undefined>()];
  const work = transact(db, detached(), async (tx) => {
    await tx.one(selectOne);
    begun.resolve(undefined);
    await go.promise;
    await rest(tx);
  });
  const reason = reasonOf(work);
  await begun.promise;
  return () => {
    go.resolve(undefined);
    return reason;
  };
};

test("statements are not compiled, unless the URL has options of its own", async () => {
  expect(await settingOf(openFor(database.url), "jit")).toBe("off");
  expect(await settingOf(openFor(`${database.url}?options=-c%20jit%3Don`), "jit")).toBe("on");
});

test("where statements may take as long as they like, half a minute's silence is one of the connection", () => {
  const { database: settings } = parseConfig({ DATABASE_STATEMENT_TIMEOUT: "off" });
  expect(answerMs(settings)).toBeGreaterThanOrEqual(30_000);
  expect(answerMs(settings)).toBeLessThan(31_000);
});

test("who gives up at once opens no connection, and who gives up while one is opened begins nothing on it", async () => {
  const proxy = await startDatabaseProxy(database.url);
  onTestFinished(() => proxy.close());
  const db = openFor(proxy.url);
  let begun = 0;
  const [early, late] = [cancellable(), cancellable()];
  const use = (waiting: ReturnType<typeof cancellable>) => reasonOf(read(db, waiting, () => Promise.resolve(begun++)));
  const refusedEarly = use(early);
  early.cancel();
  expect(await refusedEarly).toBe("CANCELLED");
  await idle(db);
  expect(proxy.startups).toHaveLength(0);
  const refusedLate = use(late);
  // By then it is asked for; who it is for, and whether he may, takes PostgreSQL several answers.
  await new Promise((resolve) => setImmediate(resolve));
  late.cancel();
  expect(await refusedLate).toBe("CANCELLED");
  await idle(db);
  expect(proxy.startups).toHaveLength(1);
  expect(begun).toBe(0);
});

test("who is at work when connections are taken anew keeps his own until he is done", async () => {
  const db = openFor(database.url);
  const finish = await begin(db, (tx) => tx.query(sql.unsafe`SELECT pg_sleep(1)`));
  db.renew();
  expect(await finish()).toBe("answered");
});

test("of several who find that the primary has become a replica one takes new connections, which the others leave alone", async () => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "2" });
  const name = sql.identifier([databaseName(database.url)]);
  const setReadOnly = (value: "on" | "off") =>
    administer(
      databaseUrl(database.url, "postgres"),
      sql.unsafe`ALTER DATABASE ${name} SET default_transaction_read_only = ${sql.literalValue(value)}`,
    );
  const write = (tx: Tx) => tx.query(sql.unsafe`CREATE TABLE written ()`);
  await setReadOnly("on");
  const finish = await begin(db, write);
  expect(await reasonOf(transact(db, detached(), write))).toBe("DATABASE_UNAVAILABLE");
  await setReadOnly("off");
  const pid = await pidOf(db);
  expect(await finish()).toBe("DATABASE_UNAVAILABLE");
  expect(await pidOf(db)).toBe(pid);
  expect(await reasonOf(transact(db, detached(), write))).toBe("answered");
});

test("once all connections have been ended a use is refused", async () => {
  const db = openFor(database.url);
  await pidOf(db);
  await db.end();
  expect(await reasonOf(pidOf(db))).toBe("DATABASE_UNAVAILABLE");
});

describe("a connection that is refused, and not closed by who refused it, is closed", () => {
  const refusal = Buffer.from("SFATAL\0C53300\0Mtoo many connections\0\0");
  const length = Buffer.alloc(4);
  length.writeInt32BE(length.length + refusal.length);

  const openQueue = (url: string) => {
    const { database: settings } = parseConfig({});
    const pool = openQueuePool({ databaseUrl: url, settings, log: createLog("silent"), size: 1 });
    onTestFinished(() => pool.end());
    return pool.connect();
  };

  test.each([
    ["for calls", (url: string) => pidOf(openFor(url))],
    ["for the delivery's queue", openQueue],
  ])("%s", async (_who, connect) => {
    const { port, sockets } = await startSilentServer();
    const refused = expect(connect(`postgres://user:password@127.0.0.1:${port}/db`)).rejects.toThrow();
    await expect.poll(() => sockets.length).toBe(1);
    sockets[0]?.write(Buffer.concat([Buffer.from("E"), length, refusal]));
    await refused;
    await expect.poll(() => sockets[0]?.destroyed).toBe(true);
  });
});
