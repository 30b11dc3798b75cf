import type { CommonQueryMethods, QuerySqlToken } from "slonik";
import { z } from "zod";

/** One statement of this many rows stays far below a statement's time limit, however much a user has. */
export const BATCH = 5_000;

/** Of a statement of which nothing is asked but how many rows it changes. */
export const noRow = z.object({});

/** Repeats a statement until it changes no row. */
export const inBatches = async (db: CommonQueryMethods, statement: QuerySqlToken): Promise<void> => {
  while ((await db.query(statement)).rowCount > 0);
};
