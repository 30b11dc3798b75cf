import { randomUUID } from "node:crypto";
import { type QuerySqlToken, sql } from "slonik";
import { inject } from "vitest";
import { ROOTED, TEMPLATE, databaseUrl, openPool } from "./admin.ts";
import { oncePerFile, onFileFinished } from "./per-file.ts";

export interface TestDatabase {
  readonly url: string;
  /** Ends whatever is still connected. */
  drop(): Promise<void>;
}

/** A file makes and drops its databases by one connection. */
const administrator = oncePerFile(async (postgresUrl: string) => {
  const pool = await openPool(postgresUrl, 1);
  onFileFinished(() => pool.end());
  return pool;
});

const run = async (statement: QuerySqlToken) => {
  const pool = await administrator(inject("postgresUrl"));
  await pool.query(statement);
};

const create = async (template: string): Promise<TestDatabase> => {
  const name = `test_${randomUUID()}`;
  // Without syncing, a copy of the files takes 20 ms in memory; by WAL it is 50.
  await run(
    sql.unsafe`CREATE DATABASE ${sql.identifier([name])} TEMPLATE ${sql.identifier([template])} STRATEGY = FILE_COPY`,
  );
  return {
    url: databaseUrl(inject("postgresUrl"), name),
    drop: () => run(sql.unsafe`DROP DATABASE ${sql.identifier([name])} WITH (FORCE)`),
  };
};

/** A copy of the migrated database, for one test or file alone. */
export const createDatabase = (): Promise<TestDatabase> => create(TEMPLATE);

/** The same with `root` in it, whose secret is the run's. */
export const createRootedDatabase = (): Promise<TestDatabase> => create(ROOTED);

/** A database with nothing in it. */
export const createEmptyDatabase = (): Promise<TestDatabase> => create("template0");
