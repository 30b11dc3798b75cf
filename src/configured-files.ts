import { watchSigningKeys } from "./auth/signing-keys.ts";
import { type Config, ConfigError } from "./config.ts";
import { verifiedTls } from "./db/connections.ts";
import { loadTemplates } from "./delivery/templates.ts";
import type { Log } from "./log.ts";
import { watchCertificates } from "./rpc/tls.ts";

/**
 * Reads the files that the configuration names, and watches those that may change.
 * @throws ConfigError that names all that are of no use.
 */
export const openConfiguredFiles = async (config: Config, jwtKeysFile: string, log: Log) => {
  const faults: string[] = [];
  const opened = async <T>(open: () => T | Promise<T>): Promise<T | undefined> => {
    try {
      return await open();
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      faults.push(...error.faults);
      return undefined;
    }
  };
  const { tls, accessTokens, delivery, database } = config;
  const templates = await opened(() => loadTemplates(delivery));
  const certificates = await opened(() => tls && watchCertificates(tls, { pollMs: tls.pollMs, log }));
  // The variable, or the file that development keeps where that is not set.
  const name = accessTokens.keysFile === undefined ? jwtKeysFile : "JWT_KEYS_FILE";
  const keys = await opened(() => watchSigningKeys({ file: jwtKeysFile, name, pollMs: accessTokens.pollMs, log }));
  // Connections are opened later, and again after failures; a start without the file of authorities is none.
  await opened(() => verifiedTls(database));
  if (!templates || !keys || faults.length > 0) {
    certificates?.close();
    keys?.close();
    throw new ConfigError(faults);
  }
  return { templates, certificates, keys };
};
