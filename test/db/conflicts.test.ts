import { sql } from "slonik";
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { transact } from "../../src/db/transact.ts";
import { detached } from "../../src/rpc/call.ts";
import { countOf, createCounters, increment, insert, selectCount } from "../support/counters.ts";
import { type TestDatabase, createEmptyDatabase } from "../support/database.ts";
import { cancellable, openFor, reasonOf } from "../support/open-database.ts";

let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
  await createCounters(database.url);
});
afterAll(() => database.drop());

/** What of a pause is left to chance is this. */
const decide = (chance: number) => {
  const random = vi.spyOn(Math, "random").mockReturnValue(chance);
  onTestFinished(() => random.mockRestore());
};

test("transactions that deadlock are run again until each has passed", async () => {
  const db = openFor(database.url);
  await transact(db, detached(), async (tx) => {
    await tx.query(insert("left"));
    await tx.query(insert("right"));
  });
  const bothHoldOne = Promise.withResolvers<undefined>();
  let held = 0;
  let runs = 0;
  const cross = (first: string, second: string) =>
    transact(db, detached(), async (tx) => {
      runs++;
      await tx.query(increment(first));
      if (++held === 2) bothHoldOne.resolve(undefined);
      await bothHoldOne.promise;
      await tx.query(increment(second));
    });
  await Promise.all([cross("left", "right"), cross("right", "left")]);
  // PostgreSQL ends one of the two, and again where that one is back before the other has taken what it waited for.
  expect(runs).toBeGreaterThanOrEqual(3);
  expect([await countOf(db, "left"), await countOf(db, "right")]).toEqual([2, 2]);
});

test("a conflict that does not end is CONFLICT after five tries, with pauses between that grow", async () => {
  decide(0.5);
  const db = openFor(database.url);
  await transact(db, detached(), (tx) => tx.query(insert("conflict")));
  const times: number[] = [];
  const work = transact(db, detached(), async (tx) => {
    times.push(performance.now());
    await tx.query(sql.unsafe`SET TRANSACTION ISOLATION LEVEL SERIALIZABLE`);
    await tx.one(selectCount("conflict"));
    await transact(db, detached(), (other) => other.query(increment("conflict")));
    await tx.query(increment("conflict"));
  });
  expect(await reasonOf(work)).toBe("CONFLICT");
  expect(times).toHaveLength(5);
  expect(await countOf(db, "conflict")).toBe(5);
  // A timer may be a millisecond early.
  for (const [tries, pause] of [10, 20, 40, 80].entries())
    expect(times[tries + 1]! - times[tries]!).toBeGreaterThan(pause - 1);
});

test("who gives up in the pause before another try is answered at once", async () => {
  // Many minutes.
  decide(100_000);
  const db = openFor(database.url);
  const waiting = cancellable();
  const ended = Promise.withResolvers<undefined>();
  const fail = sql.unsafe`DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$`;
  const work = transact(db, waiting, (tx) => tx.query(fail), { settled: () => ended.resolve(undefined) });
  await ended.promise;
  await expect.poll(() => db.load()).toEqual({ inside: 0, waiting: 0 });
  waiting.cancel();
  expect(await reasonOf(work)).toBe("CANCELLED");
});
