import { sql } from "slonik";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Database } from "../../src/db/pool.ts";
import { read } from "../../src/db/transact.ts";
import { detached } from "../../src/rpc/call.ts";
import { administer } from "../support/admin.ts";
import { type TestDatabase, createEmptyDatabase } from "../support/database.ts";
import { openFor, pidOf, reasonOf } from "../support/open-database.ts";

let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
  await administer(
    database.url,
    sql.unsafe`
      CREATE FUNCTION fail(state text) RETURNS void LANGUAGE plpgsql
      AS $$ BEGIN RAISE EXCEPTION 'failed' USING ERRCODE = state; END $$`,
  );
});
afterAll(() => database.drop());

const fail = (db: Database, state: string) =>
  read(db, detached(), (connection) => connection.query(sql.unsafe`SELECT fail(${state})`));

test.each(["08006", "25006", "25P03", "53100", "53300", "55P03", "57014", "57P01", "58030"])(
  "what fails with %s is DATABASE_UNAVAILABLE",
  async (state) => {
    expect(await reasonOf(fail(openFor(database.url), state))).toBe("DATABASE_UNAVAILABLE");
  },
);

test.each([
  ["08006", false],
  ["23514", true],
  ["25P03", false],
  ["53300", true],
  ["57014", true],
  ["57P01", false],
  ["58030", false],
  ["XX000", false],
])("after %s the connection is used again: %s", async (state, isKept) => {
  const db = openFor(database.url, { DATABASE_POOL_MAX: "1" });
  const before = await pidOf(db);
  await expect(fail(db, state)).rejects.toThrow();
  expect((await pidOf(db)) === before).toBe(isKept);
});
