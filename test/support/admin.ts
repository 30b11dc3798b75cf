import { type QuerySqlToken, createPool, sql } from "slonik";

/** The migrated database that tests copy. Nobody connects to it: a database in use cannot be copied. */
export const TEMPLATE = "template_auth";

export const databaseUrl = (url: string, database: string): string => {
  const other = new URL(url);
  other.pathname = `/${database}`;
  return other.toString();
};

/** Runs one statement on a connection of its own. */
export const administer = async (url: string, statement: (tag: typeof sql) => QuerySqlToken): Promise<void> => {
  const pool = await createPool(url, { maxPoolSize: 1, connectionRetryLimit: 0, statementTimeout: 30_000 });
  try {
    await pool.query(statement(sql));
  } finally {
    await pool.end();
  }
};
