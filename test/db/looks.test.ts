import { afterAll, beforeAll, expect, test } from "vitest";
import { changedMeanwhile, transactAgain } from "../../src/db/looks.ts";
import { detached } from "../../src/rpc/call.ts";
import { type TestDatabase, createEmptyDatabase } from "../support/database.ts";
import { openFor, reasonOf } from "../support/open-database.ts";

let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
});
afterAll(() => database.drop());

test("who looks is told CONFLICT where somebody else wrote during each of three looks", async () => {
  let looks = 0;
  const work = transactAgain(openFor(database.url), detached(), () => {
    looks++;
    return Promise.resolve(changedMeanwhile);
  });
  expect(await reasonOf(work)).toBe("CONFLICT");
  expect(looks).toBe(3);
});

test("what the last look finds counts", async () => {
  let looks = 0;
  const look = () => Promise.resolve(++looks < 3 ? changedMeanwhile : { looks });
  expect(await transactAgain(openFor(database.url), detached(), look)).toEqual({ looks: 3 });
});
