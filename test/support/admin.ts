import { type DatabasePool, type QuerySqlToken, createPool, sql } from "slonik";
import { createDriver } from "../../src/db/driver.ts";

/** The migrated database that tests copy. Nobody connects to it: a database in use cannot be copied. */
export const TEMPLATE = "template_auth";
/** The same with `root` in it, as bootstrap makes it. */
export const ROOTED = "template_auth_root";

export const databaseUrl = (url: string, database: string): string => {
  const other = new URL(url);
  other.pathname = `/${database}`;
  return other.toString();
};

const STATEMENT_MS = 60_000;

/**
 * A pool of a test's own. A connection costs 10 ms of two processes' time: slonik's driver would open one more, to ask for types
 * that never change, and each use would end with a `DISCARD ALL`.
 */
export const openPool = (url: string, maxPoolSize: number): Promise<DatabasePool> =>
  createPool(url, {
    driverFactory: createDriver({ silenceMs: STATEMENT_MS, prepares: true }),
    maxPoolSize,
    connectionRetryLimit: 0,
    statementTimeout: STATEMENT_MS,
    resetConnection: () => Promise.resolve(),
  });

/** Runs one statement on a connection of its own. */
export const administer = async (url: string, statement: (tag: typeof sql) => QuerySqlToken): Promise<void> => {
  const pool = await openPool(url, 1);
  try {
    await pool.query(statement(sql));
  } finally {
    await pool.end();
  }
};
