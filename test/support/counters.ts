import { sql } from "slonik";
import { z } from "zod";
import type { Database } from "../../src/db/pool.ts";
import { read } from "../../src/db/transact.ts";
import { detached } from "../../src/rpc/call.ts";
import { administer } from "./admin.ts";

/** Makes the table of the rest, in which a counter stays below 100. */
export const createCounters = (url: string): Promise<unknown> =>
  administer(url, sql.unsafe`CREATE TABLE counters (id text PRIMARY KEY, count int NOT NULL CHECK (count < 100))`);

export const insert = (id: string, count = 0) => sql.unsafe`INSERT INTO counters (id, count) VALUES (${id}, ${count})`;
export const increment = (id: string) => sql.unsafe`UPDATE counters SET count = count + 1 WHERE id = ${id}`;
export const selectCount = (id: string) => sql.type(z.object({ count: z.number() }))`
  SELECT count FROM counters WHERE id = ${id}`;

/** Undefined where there is no such counter. */
export const countOf = async (db: Database, id: string): Promise<number | undefined> =>
  (await read(db, detached(), (connection) => connection.maybeOne(selectCount(id))))?.count;
