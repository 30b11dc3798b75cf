import { createPool, sql } from "slonik";
import { expect, test } from "vitest";
import { z } from "zod";
import { createDatabase } from "../support/database.ts";
import { describeMismatch, statementSchemas } from "../support/statement-schemas.ts";

const uuid = 2950;
const int8 = 20;
const textArray = 1009;
const jsonb = 3802;
const bytea = 17;

test("a schema that takes each column as slonik hands it over has no mismatch", () => {
  const schema = z.object({
    id: z.uuid().brand("id"),
    state: z.enum(["active", "disabled"]).nullable(),
    count: z.bigint().transform(Number),
    keys: z.array(z.string().nullable()),
    payload: z.object({ a: z.number() }).nullable(),
    hash: z.instanceof(Buffer),
  });
  const fields = [
    { name: "id", dataTypeId: uuid },
    { name: "state", dataTypeId: 25 },
    { name: "count", dataTypeId: int8 },
    { name: "keys", dataTypeId: textArray },
    { name: "payload", dataTypeId: jsonb },
    { name: "hash", dataTypeId: bytea },
  ];
  expect(describeMismatch(schema, fields)).toEqual([]);
});

test("types, lacking and superfluous columns are told apart", () => {
  const schema = z.object({ count: z.number(), keys: z.array(z.number()), gone: z.string(), any: z.coerce.number() });
  const fields = [
    { name: "count", dataTypeId: int8 },
    { name: "keys", dataTypeId: textArray },
    { name: "any", dataTypeId: int8 },
    { name: "id", dataTypeId: uuid },
  ];
  expect(describeMismatch(schema, fields)).toEqual([
    'column "count" is bigint in PostgreSQL, number in its row schema',
    'column "keys" is string[] in PostgreSQL, number[] in its row schema',
    'column "any" is bigint in PostgreSQL, unknown in its row schema',
    'column "id" is returned, and its row schema lacks it',
    'column "gone" is in the row schema, and not returned',
  ]);
});

test("a statement that gives no row is held against its schema all the same", async () => {
  await using database = await openDatabase();
  const { pool } = database;
  const wrong = sql.type(z.object({ tenant_id: z.number() }))`SELECT tenant_id FROM tenants WHERE FALSE`;
  await expect(pool.any(wrong)).rejects.toThrow('column "tenant_id" is string in PostgreSQL, number in its row schema');
  await expect(pool.any(sql.unsafe`SELECT tenant_id FROM tenants WHERE FALSE`)).resolves.toEqual([]);
});

const openDatabase = async () => {
  const { url, drop } = await createDatabase();
  const pool = await createPool(url, { interceptors: [statementSchemas] });
  return {
    pool,
    async [Symbol.asyncDispose]() {
      await pool.end();
      await drop();
    },
  };
};
