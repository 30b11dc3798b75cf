import { Client } from "pg";
import { sql } from "slonik";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { createSender } from "../../src/db/sending.ts";
import { type Tx, queryAtEnd, read, transact } from "../../src/db/transact.ts";
import { Call, detached } from "../../src/rpc/call.ts";
import { refusal } from "../../src/rpc/refusal.ts";
import { administer } from "../support/admin.ts";
import { startDatabaseProxy } from "../support/database-proxy.ts";
import { type TestDatabase, createEmptyDatabase } from "../support/database.ts";
import { openFor, reasonOf } from "../support/open-database.ts";

let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
  await administer(
    database.url,
    sql.unsafe`CREATE TABLE notes (note text PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, CHECK (note <> 'bad'))`,
  );
});
afterAll(() => database.drop());

const insert = (note: string) => sql.unsafe`INSERT INTO notes (note) VALUES (${note})`;
const selectOne = sql.type(z.object({ one: z.number() }))`SELECT 1 AS one`;
const selectNotes = sql.type(z.object({ notes: z.string() }))`
  SELECT coalesce(string_agg(note, ',' ORDER BY note), '') AS notes FROM notes`;

/** The database by one connection, and what stands between. */
const open = async (env: Readonly<Record<string, string>> = {}) => {
  const proxy = await startDatabaseProxy(database.url);
  const db = openFor(proxy.url, { DATABASE_POOL_MAX: "1", ...env });
  onTestFinished(() => proxy.close());
  await administer(database.url, sql.unsafe`DELETE FROM notes`);
  const notes = () => read(db, detached(), (connection) => connection.oneFirst(selectNotes));
  await notes();
  const roundTripsOf = async (work: () => Promise<unknown>) => {
    const before = proxy.roundTrips();
    await work();
    return proxy.roundTrips() - before;
  };
  return { db, notes, roundTripsOf };
};

test("a transaction costs its statements' round trips: none for its beginning, its time limit and its end", async () => {
  const { db, notes, roundTripsOf } = await open();
  const body = async (tx: Tx) => {
    await tx.one(selectOne);
    await queryAtEnd(tx, insert("a"));
  };
  expect(await roundTripsOf(() => transact(db, detached(), body))).toBe(2);
  expect(await notes()).toBe("a");
  const withDeadline = () => transact(db, new Call("deadline", 1_000), (tx) => queryAtEnd(tx, insert("b")));
  expect(await roundTripsOf(withDeadline)).toBe(1);
  expect(await notes()).toBe("a,b");
});

test("a transaction without a statement sends nothing, however it ends", async () => {
  const { db, roundTripsOf } = await open();
  expect(await roundTripsOf(() => transact(db, detached(), () => Promise.resolve()))).toBe(0);
  const failing = () => reasonOf(transact(db, detached(), () => Promise.reject(refusal("CANCELLED"))));
  expect(await roundTripsOf(failing)).toBe(0);
});

test("what is sent at the end comes after all else, in its order", async () => {
  const { db, notes } = await open();
  const seen = await transact(db, detached(), async (tx) => {
    await queryAtEnd(tx, insert("first"));
    const before = await tx.oneFirst(selectNotes);
    await queryAtEnd(tx, insert("second"));
    return [before, await tx.oneFirst(selectNotes)];
  });
  expect(seen).toEqual(["", "first"]);
  expect(await notes()).toBe("first,second");
});

test.each([
  ["the last statement", "bad", "violates check constraint"],
  ["the commit itself", "twice", "duplicate key"],
])("where %s fails nothing stands, it says why, and the connection goes on", async (_what, last, why) => {
  const { db, notes, roundTripsOf } = await open();
  const work = () =>
    transact(db, detached(), async (tx) => {
      await tx.query(insert("twice"));
      await queryAtEnd(tx, insert(last));
    });
  await expect(work()).rejects.toThrow(why);
  expect(await notes()).toBe("");
  // On the same connection: a new one would say who it is first.
  expect(await roundTripsOf(notes)).toBe(1);
});

test("what a body left running comes too late to be sent at the end, and is told so", async () => {
  const { db, notes } = await open();
  const { promise, resolve } = Promise.withResolvers<undefined>();
  let late: Promise<void> | undefined;
  await transact(db, detached(), async (tx) => {
    await tx.one(selectOne);
    late = promise.then(() => queryAtEnd(tx, insert("late")));
  });
  resolve(undefined);
  await expect(late).rejects.toThrow();
  expect(await notes()).toBe("");
});

test("a statement at the end of a savepoint is sent at once, and goes with it", async () => {
  const { db, notes } = await open();
  await transact(db, detached(), async (tx) => {
    await tx
      .transaction(async (savepoint) => {
        await queryAtEnd(savepoint, insert("gone"));
        throw new Error("back");
      })
      .catch(() => undefined);
    await queryAtEnd(tx, insert("kept"));
  });
  expect(await notes()).toBe("kept");
});

test("of a transaction whose failure its body overlooks nobody is told that it stands", async () => {
  const { db, notes } = await open();
  const overlooked = (texts: readonly string[]) =>
    transact(db, detached(), async (tx) => {
      for (const text of texts) await tx.query(insert(text)).catch(() => undefined);
    });
  await expect(overlooked(["bad"])).rejects.toThrow("the transaction has failed");
  await expect(overlooked(["good", "bad"])).rejects.toThrow("the transaction had failed");
  expect(await notes()).toBe("");
});

describe("a sender", () => {
  const connect = async () => {
    const { notes } = await open();
    const client = new Client({ connectionString: database.url, pipeline: true });
    await client.connect();
    onTestFinished(() => client.end());
    return { send: createSender(client), notes };
  };
  const text = "INSERT INTO notes (note) VALUES ('alone')";

  test("runs nothing of a transaction whose beginning failed, until it is rolled back", async () => {
    const { send, notes } = await connect();
    await send({ text: "START TRANSACTION" }, { timeoutMs: 1e12 });
    await expect(send({ text }, {})).rejects.toThrow("statement_timeout");
    await expect(send({ text }, {})).rejects.toThrow("the transaction has failed");
    await expect(send({ text }, { commits: true })).rejects.toThrow("the transaction has failed");
    await send({ text: "ROLLBACK" }, {});
    expect(await notes()).toBe("");
    await send({ text }, {});
    expect(await notes()).toBe("alone");
  });

  test("commits nothing where the last statement's values cannot be written", async () => {
    const { send, notes } = await connect();
    const toPostgres = () => {
      throw new Error("no such value");
    };
    await send({ text: "START TRANSACTION" }, {});
    await send({ text }, {});
    const last = send({ text: "INSERT INTO notes (note) VALUES ($1)", values: [{ toPostgres }] }, { commits: true });
    await expect(last).rejects.toThrow("no such value");
    await send({ text: "ROLLBACK" }, {});
    expect(await notes()).toBe("");
  });

  test("prepares a statement with a name that failed as a transaction's first", async () => {
    const { send } = await connect();
    const named = { name: "late", text: "SELECT 1 FROM later" };
    await send({ text: "START TRANSACTION" }, {});
    await expect(send(named, {})).rejects.toThrow("later");
    await send({ text: "ROLLBACK" }, {});
    await send({ text: "CREATE TEMP TABLE later ()" }, {});
    expect((await send(named, {})).rows).toEqual([]);
  });

  test("sends nothing after the end", async () => {
    const { send, notes } = await connect();
    await send({ text: "START TRANSACTION" }, {});
    await send({ text }, { commits: true });
    await expect(send({ text }, {})).rejects.toThrow("after its transaction's end");
    await send({ text: "COMMIT" }, {});
    expect(await notes()).toBe("alone");
  });
});

test("a deadline in the far future is no error, where nothing else bounds a statement", async () => {
  const { db } = await open({ DATABASE_STATEMENT_TIMEOUT: "off" });
  const far = new Call("far", 1e12);
  onTestFinished(() => far.close());
  expect(await reasonOf(transact(db, far, (tx) => tx.one(selectOne)))).toBe("answered");
});

test("a statement and its commit may take weeks, where the environment says so", async () => {
  const { db, notes } = await open({ DATABASE_STATEMENT_TIMEOUT: "24d" });
  await transact(db, detached(), (tx) => queryAtEnd(tx, insert("slow")));
  expect(await notes()).toBe("slow");
});

test("the last statement and the commit behind it may each take what one may", async () => {
  const { db, notes } = await open({ DATABASE_STATEMENT_TIMEOUT: "2s" });
  await administer(
    database.url,
    sql.unsafe`
      CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql
      AS $$ BEGIN PERFORM pg_sleep(1.4); RETURN NEW; END $$`,
  );
  for (const trigger of [
    sql.unsafe`CREATE TRIGGER slow BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION dawdle()`,
    sql.unsafe`
      CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON notes INITIALLY DEFERRED
      FOR EACH ROW EXECUTE FUNCTION dawdle()`,
  ])
    await administer(database.url, trigger);
  onTestFinished(async () => {
    await administer(database.url, sql.unsafe`DROP FUNCTION dawdle CASCADE`);
  });
  await transact(db, detached(), (tx) => queryAtEnd(tx, insert("slow")));
  expect(await notes()).toBe("slow");
});

test("a transaction's own time limit is also that of the statement which goes with its end", async () => {
  const { db } = await open({ DATABASE_STATEMENT_TIMEOUT: "100ms" });
  // Longer than a statement and a commit may otherwise leave their answers out.
  const sleep = sql.unsafe`SELECT pg_sleep(1.5)`;
  const work = transact(db, detached(), (tx) => queryAtEnd(tx, sleep), { statementTimeoutMs: 10_000 });
  expect(await reasonOf(work)).toBe("answered");
});
