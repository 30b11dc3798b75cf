import type { CommonQueryMethods, QuerySqlToken } from "slonik";
import { z } from "zod";

/** One statement of this many rows stays far below a statement's time limit, however much a user has. */
export const BATCH = 5_000;

export const changedRow = z.object({ count: z.bigint() });

/** Repeats a statement that answers with how many rows it changed, until none are left. */
export const inBatches = async (db: CommonQueryMethods, statement: QuerySqlToken<typeof changedRow>): Promise<void> => {
  while ((await db.oneFirst(statement)) > 0n);
};
