import { generateKeyPairSync, randomBytes, randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { link, mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Config, ConfigError, parsePeppers } from "./config.ts";
import type { Pepper } from "./config-values.ts";
import type { Log } from "./log.ts";
import { readConfigured } from "./without-waiting.ts";

const PEPPERS = "secret.peppers";
const JWT_KEYS = "jwt-keys.json";

const writeDraft = async (dataDir: string, name: string, text: string): Promise<string> => {
  const draft = join(dataDir, `${name}.${randomUUID()}`);
  try {
    await mkdir(dataDir, { recursive: true });
    await writeFile(draft, text, { mode: 0o600, flag: "wx" });
  } catch (error) {
    // What a full disk took of it; where there is no folder there is none.
    await rm(draft, { force: true }).catch(() => undefined);
    throw new ConfigError([`DATA_DIR cannot be written to: ${(error as NodeJS.ErrnoException).code}`]);
  }
  return draft;
};

/**
 * Makes a file of secrets, mode 0600, where there is none; answers whether it did.
 *
 * The file appears whole or not at all, so that of two processes that start at once one makes it and both read it.
 */
const makeOnce = async (dataDir: string, name: string, text: string): Promise<boolean> => {
  // Then nothing is written: the disk may have become full, or read-only.
  if (existsSync(join(dataDir, name))) return false;
  const draft = await writeDraft(dataDir, name, text);
  try {
    await link(draft, join(dataDir, name));
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    return false;
  } finally {
    await rm(draft);
  }
};

const readPeppers = async (file: string): Promise<string> => {
  try {
    return String(await readConfigured(file)).trim();
  } catch (error) {
    throw new ConfigError([`${file} cannot be read: ${(error as NodeJS.ErrnoException).code}`]);
  }
};

/** The peppers of the configuration, or outside production those of `DATA_DIR/secret.peppers`, made where there are none. */
export const peppersOf = async (
  { peppers, dataDir }: Pick<Config, "peppers" | "dataDir">,
  log: Log,
): Promise<readonly Pepper[]> => {
  if (peppers) return peppers;
  const file = join(dataDir, PEPPERS);
  const made = await makeOnce(dataDir, PEPPERS, `1:${randomBytes(32).toString("base64")}\n`);
  if (made) log.warn({ file }, "SECRET_PEPPERS is not set: made one for development");
  return parsePeppers(await readPeppers(file), file);
};

/** A new Ed25519 key with a private part (RFC 8037), as a JWKS has it. */
export const makeJwk = () => {
  const { crv, d, x } = generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" });
  return { kty: "OKP", crv, x, d, kid: randomUUID(), alg: "EdDSA", use: "sig" };
};

/** The key file of the configuration, or outside production `DATA_DIR/jwt-keys.json`, made where there is none. */
export const jwtKeysFileOf = async (
  { accessTokens, dataDir }: Pick<Config, "accessTokens" | "dataDir">,
  log: Log,
): Promise<string> => {
  if (accessTokens.keysFile !== undefined) return accessTokens.keysFile;
  const file = join(dataDir, JWT_KEYS);
  const made = await makeOnce(dataDir, JWT_KEYS, `${JSON.stringify({ keys: [makeJwk()] }, undefined, 2)}\n`);
  if (made) log.warn({ file }, "JWT_KEYS_FILE is not set: made one for development");
  return file;
};
