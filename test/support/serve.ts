import { inject } from "vitest";
import { parseConfig } from "../../src/config.ts";
import { type Log, createLog } from "../../src/log.ts";
import { type RunningServer, startServer } from "../../src/server.ts";
import { PEPPERS } from "./root.ts";

/** A server on free ports and a database in whatever state: nothing is bootstrapped, nobody signed in. */
export const serve = (
  databaseUrl: string,
  env: Readonly<Record<string, string>> = {},
  log: Log = createLog("silent"),
): Promise<RunningServer> => {
  const parsed = parseConfig({ NODE_ENV: "test", GRPC_HOST: "127.0.0.1", GRPC_PORT: "0", ...env });
  return startServer({
    config: { ...parsed, http: { ...parsed.http, host: "127.0.0.1", port: 0 } },
    databaseUrl,
    peppers: PEPPERS,
    jwtKeysFile: inject("jwtKeysFile"),
    log,
  });
};
