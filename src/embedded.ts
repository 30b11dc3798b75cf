import { existsSync } from "node:fs";
import { migrate, migrationUrl } from "./commands/migrate.ts";
import type { Config } from "./config.ts";
import type { Pepper } from "./config-values.ts";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "./db/embedded-postgres.ts";
import { openDatabase } from "./db/pool.ts";
import type { Log } from "./log.ts";
import { bootstrapRoot, recoverRoot } from "./service-identity/bootstrap.ts";
import { createMacs } from "./macs.ts";
import { keepRootSecret, rootSecretFile } from "./root-secret.ts";

export interface PreparedDatabase extends EmbeddedPostgres {
  /** The root service's secret, where it was made just now. */
  readonly rootSecret: string | undefined;
}

const bootstrap = async (config: Config, url: string, peppers: readonly Pepper[], log: Log) => {
  const db = openDatabase({ url, settings: config.database, log });
  try {
    const macs = createMacs(peppers);
    const file = rootSecretFile(config);
    // A start that was cut short, or had no room, may have made root and not kept its secret.
    const secret = (await bootstrapRoot(db, macs)) ?? (existsSync(file) ? undefined : await recoverRoot(db, macs));
    if (secret) await keepRootSecret(file, secret);
    return secret;
  } finally {
    await db.end();
  }
};

/** A database for whoever brings none: started in `DATA_DIR`, migrated, and with a root service. */
export const prepareEmbeddedDatabase = async (
  config: Config,
  peppers: readonly Pepper[],
  log: Log,
): Promise<PreparedDatabase> => {
  const postgres = await startEmbeddedPostgres({ dataDir: config.dataDir });
  try {
    const { applied, queueSteps } = await migrate(migrationUrl(postgres.url, config.database));
    if (applied.length + queueSteps > 0) log.info({ applied, queue_steps: queueSteps }, "migrated");
    return { ...postgres, rootSecret: await bootstrap(config, postgres.url, peppers, log) };
  } catch (error) {
    await postgres.stop();
    throw error;
  }
};
