import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { migrate } from "../../src/commands/migrate.ts";
import { parseConfig } from "../../src/config.ts";
import { startEmbeddedPostgres } from "../../src/db/embedded-postgres.ts";
import { jwtKeysFileOf } from "../../src/dev-keys.ts";
import { createLog } from "../../src/log.ts";
import { TEMPLATE, administer, databaseUrl } from "./admin.ts";

declare module "vitest" {
  export interface ProvidedContext {
    /** The superuser's URL of the run's one PostgreSQL. */
    postgresUrl: string;
    /** The JWKS file of the run's servers. */
    jwtKeysFile: string;
  }
}

/** One PostgreSQL for the whole run, with a migrated database that tests copy. */
export default async ({ provide }: TestProject) => {
  const dataDir = await mkdtemp(join(tmpdir(), "auth-service-test-"));
  const postgres = await startEmbeddedPostgres({ dataDir, durable: false, removeAtEnd: true });
  try {
    await administer(postgres.url, (sql) => sql.unsafe`CREATE DATABASE ${sql.identifier([TEMPLATE])}`);
    await migrate(databaseUrl(postgres.url, TEMPLATE));
  } catch (error) {
    await postgres.stop();
    throw error;
  }
  const keysDir = await mkdtemp(join(tmpdir(), "auth-service-keys-"));
  provide("postgresUrl", postgres.url);
  provide("jwtKeysFile", await jwtKeysFileOf(parseConfig({ DATA_DIR: keysDir }), createLog("silent")));
  return async () => {
    await postgres.stop();
    await rm(keysDir, { recursive: true });
  };
};
