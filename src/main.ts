import type { Config } from "./config.ts";
import { addressText } from "./config-values.ts";
import { runCommand } from "./commands/run.ts";
import { jwtKeysFileOf, peppersOf } from "./dev-keys.ts";
import { type PreparedDatabase, prepareEmbeddedDatabase } from "./embedded.ts";
import { type Log, createLog } from "./log.ts";
import { rootSecretFile } from "./root-secret.ts";
import { type RunningServer, startServer } from "./server.ts";
import { stopOnSignal } from "./signals.ts";
import { endedWithin } from "./timers.ts";

const addresses = (config: Config, { grpcPort, httpPort }: RunningServer) => ({
  grpc: addressText(config.grpc.host, grpcPort),
  http: httpPort === undefined ? "off" : addressText(config.http.host, httpPort),
});

/** For people: in development on a database of our own. Never in the log, since it holds a secret. */
const welcome = (config: Config, server: RunningServer, { rootSecret }: PreparedDatabase) => {
  const { grpc, http } = addresses(config, server);
  const plaintext = config.tls ? "" : "-plaintext ";
  const call = `grpcurl ${plaintext}-H "authorization: Bearer $(npm run --silent token)" localhost:${server.grpcPort}`;
  return [
    `ready: gRPC on ${grpc}, HTTP on ${http}`,
    rootSecret && `root secret, shown this once (also in ${rootSecretFile(config)}): ${rootSecret}`,
    `try: ${call} service_identity.v1.ServiceIdentityService/ListServices`,
    "",
  ]
    .filter((line) => line !== undefined)
    .join("\n");
};

/** How long the last lines may take: nobody may be there to read them. */
const FLUSH_MS = 2_000;
const flushed = (log: Log): Promise<boolean> =>
  endedWithin(FLUSH_MS, new Promise<void>((resolve) => log.flush(() => resolve())));
/** Node's own end waits for a write under way, which may be one that never ends. */
const end = (isFlushed: boolean) => (isFlushed ? process.exit() : process.kill(process.pid, "SIGKILL"));

const endOnSignal = (log: Log, stop: () => Promise<void>) =>
  stopOnSignal((signal) => {
    log.info({ signal }, "shutting down");
    void stop()
      .catch((error: unknown) => {
        log.error({ err: error }, "the shutdown failed");
        process.exitCode = 1;
      })
      .then(() => flushed(log))
      .then(end);
  });

/**
 * Loading the modules grows the young generation to its full size, which V8 would keep for as long as little happens.
 * Under load it grows again, and is collected less often for its size. `npm start` exposes `gc`.
 */
const releaseStartMemory = () => globalThis.gc?.({ type: "major", execution: "sync", flavor: "last-resort" });

await runCommand(async (config) => {
  const log = createLog(config.logLevel);
  const peppers = await peppersOf(config, log);
  const jwtKeysFile = await jwtKeysFileOf(config, log);
  const embedded = config.database.url ? undefined : await prepareEmbeddedDatabase(config, peppers, log);
  const databaseUrl = config.database.url ?? embedded?.url ?? "";
  try {
    const starting = startServer({ config, databaseUrl, peppers, jwtKeysFile, log });
    // From the first on: a container's first process does not end by a signal that nobody handles.
    endOnSignal(log, async () => {
      await (await starting).stop();
      await embedded?.stop();
    });
    const server = await starting;
    log.info({ ...addresses(config, server), readiness: server.readiness() }, "serving");
    // After what was logged before it, which is still gathered.
    await flushed(log);
    if (embedded) process.stdout.write(welcome(config, server, embedded));
    releaseStartMemory();
  } catch (error) {
    await embedded?.stop();
    throw error;
  }
});
