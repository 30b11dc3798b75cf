import { randomBytes, randomUUID } from "node:crypto";
import { link, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Config, parsePeppers } from "./config.ts";
import type { Pepper } from "./config-values.ts";
import type { Log } from "./log.ts";

const isExisting = (error: unknown) => (error as NodeJS.ErrnoException).code === "EEXIST";

/**
 * The peppers of the configuration, or outside production those of `DATA_DIR/secret.peppers`, made where there are none.
 *
 * The file appears whole or not at all, so that of two processes that start at once one makes it and both read it.
 */
export const peppersOf = async (
  { peppers, dataDir }: Pick<Config, "peppers" | "dataDir">,
  log: Log,
): Promise<readonly Pepper[]> => {
  if (peppers) return peppers;
  const file = join(dataDir, "secret.peppers");
  await mkdir(dataDir, { recursive: true });
  const draft = `${file}.${randomUUID()}`;
  await writeFile(draft, `1:${randomBytes(32).toString("base64")}\n`, { mode: 0o600, flag: "wx" });
  try {
    await link(draft, file);
    log.warn({ file }, "SECRET_PEPPERS is not set: made one for development");
  } catch (error) {
    if (!isExisting(error)) throw error;
  } finally {
    await rm(draft);
  }
  return parsePeppers((await readFile(file, "utf8")).trim(), file);
};

/** The key file of the configuration, or outside production `DATA_DIR/jwt-keys.json`. */
export const jwtKeysFileOf = ({ accessTokens, dataDir }: Pick<Config, "accessTokens" | "dataDir">): Promise<string> =>
  Promise.resolve(accessTokens.keysFile ?? join(dataDir, "jwt-keys.json"));
