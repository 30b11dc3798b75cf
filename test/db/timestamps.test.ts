import fc from "fast-check";
import { sql } from "slonik";
import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";
import { timestamptzParser } from "../../src/db/timestamps.ts";
import { transact } from "../../src/db/transact.ts";
import { detached } from "../../src/rpc/call.ts";
import { type TestDatabase, createEmptyDatabase } from "../support/database.ts";
import { openFor } from "../support/open-database.ts";

const YEAR_1 = Date.parse("0001-01-01T00:00:00.000Z");
const YEAR_9999 = Date.parse("9999-12-31T23:59:59.999Z");

let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
});
afterAll(() => database.drop());

const timeRow = z.object({ time: z.unknown() });

/** What the service reads of times that PostgreSQL is told as text, in a session of this zone. */
const readTimes = async (zone: string, texts: readonly string[]): Promise<readonly unknown[]> => {
  const rows = await transact(openFor(database.url), detached(), async (tx) => {
    await tx.one(sql.type(z.object({ zone: z.string() }))`SELECT set_config('TimeZone', ${zone}, true) AS zone`);
    return tx.any(sql.type(timeRow)`
      SELECT t.time FROM unnest(${sql.array(texts, "timestamptz")}) WITH ORDINALITY AS t (time, at) ORDER BY t.at`);
  });
  return rows.map(({ time }) => time);
};

// Berlin's offset had seconds until 1893, and Kolkata's has minutes.
test.each(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York"])(
  "a session in %s reads every millisecond of the years 1 to 9999 as it was written",
  async (zone) => {
    const early = fc.integer({ min: YEAR_1, max: Date.parse("0101-01-01T00:00:00Z") });
    const any = fc.integer({ min: YEAR_1, max: YEAR_9999 });
    const times = [YEAR_1, YEAR_9999, -1, 0, 1, ...fc.sample(fc.oneof(early, any), 2_000)];
    const read = await readTimes(
      zone,
      times.map((ms) => new Date(ms).toISOString()),
    );
    expect(read).toEqual(times);
  },
);

test.each(["UTC", "Europe/Berlin"])("a session in %s cuts off what is finer, before 1970 too", async (zone) => {
  const texts = ["2024-05-01T12:00:00.123999Z", "1960-05-01T12:00:00.123999Z", "0033-05-01T12:00:00.123999Z"];
  const whole = texts.map((text) => Date.parse(text.replace("999Z", "Z")));
  expect(await readTimes(zone, texts)).toEqual(whole);
});

test("times before our era, after the year 9999 and without end are the nearest that a Timestamp holds", async () => {
  const early = ["-infinity", "0044-03-15 00:00:00+00 BC", "0001-12-31 23:59:59.999999+00 BC"];
  const late = ["10000-01-01 00:00:00+00", "12024-01-01 00:00:00+00", "infinity"];
  const nearest = [...early.map(() => YEAR_1), ...late.map(() => YEAR_9999)];
  for (const zone of ["UTC", "Asia/Kolkata"]) expect(await readTimes(zone, [...early, ...late])).toEqual(nearest);
});

test("a time that is too late for a Date is none, rather than 1970", async () => {
  expect(await readTimes("UTC", ["294276-12-31 23:59:59+00"])).toEqual([NaN]);
});

test("a time in a style that is not asked for is none, rather than 1970", () => {
  expect(timestamptzParser.parse("01.05.2024 12:00:00 UTC")).toBeNaN();
});
