import { parseConfig } from "../../src/config.ts";
import type { Pepper } from "../../src/config-values.ts";
import { openDatabase } from "../../src/db/pool.ts";
import { createLog } from "../../src/log.ts";
import { createMacs } from "../../src/macs.ts";
import { bootstrapRoot } from "../../src/service-identity/bootstrap.ts";

const KEY = Buffer.alloc(32, 7);

/** Of every test server. */
export const PEPPERS: readonly Pepper[] = [{ version: 1, key: KEY }];

/** The same, as they stand in the environment. */
export const SECRET_PEPPERS = `1:${KEY.toString("base64")}`;

/** Makes `root` in a migrated database: its secret, or undefined where it is there already. */
export const makeRoot = async (url: string, peppers = PEPPERS): Promise<string | undefined> => {
  const db = openDatabase({ url, settings: parseConfig({ NODE_ENV: "test" }).database, log: createLog("silent") });
  try {
    return await bootstrapRoot(db, createMacs(peppers));
  } finally {
    await db.end();
  }
};
