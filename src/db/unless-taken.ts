import type { QuerySqlToken } from "slonik";
import type { z } from "zod";
import { UNIQUE_VIOLATION, sqlStateOf } from "./sql-state.ts";
import type { Tx } from "./transact.ts";

/**
 * Runs an UPDATE of one row in a savepoint, since it has no ON CONFLICT.
 * @returns the row; undefined where a key is taken, with nothing written.
 */
export const unlessTaken = async <Row>(tx: Tx, update: QuerySqlToken<z.ZodType<Row>>): Promise<Row | undefined> => {
  try {
    return await tx.transaction((savepoint) => savepoint.one(update));
  } catch (error) {
    if (sqlStateOf(error) !== UNIQUE_VIOLATION) throw error;
    return undefined;
  }
};
