import { type DatabasePool, type QuerySqlToken, createPool, sql } from "slonik";
import { createDriver } from "../../src/db/driver.ts";
import type { Tx } from "../../src/db/transact.ts";

/** The migrated database that tests copy. Nobody connects to it: a database in use cannot be copied. */
export const TEMPLATE = "template_auth";
/** The same with `root` in it, as bootstrap makes it. */
export const ROOTED = "template_auth_root";

export const databaseUrl = (url: string, database: string): string => {
  const other = new URL(url);
  other.pathname = `/${database}`;
  return other.toString();
};

/** The name of a URL's database. */
export const databaseName = (url: string): string => new URL(url).pathname.slice(1);

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

/** Works on a connection of its own, which then ends. */
export const withPool = async <T>(url: string, work: (pool: DatabasePool) => Promise<T>): Promise<T> => {
  const pool = await openPool(url, 1);
  try {
    return await work(pool);
  } finally {
    await pool.end();
  }
};

/** Runs one statement on a connection of its own. */
export const administer = (url: string, statement: QuerySqlToken) => withPool(url, (pool) => pool.query(statement));

/** One transaction that plants rows without the checks of foreign keys, which would be most of the time. */
export const plantUnchecked = ({ pool }: { readonly pool: DatabasePool }, plant: (tx: Tx) => Promise<unknown>) =>
  pool.transaction(async (tx) => {
    await tx.query(sql.unsafe`SET LOCAL session_replication_role = replica`);
    await plant(tx);
  });
