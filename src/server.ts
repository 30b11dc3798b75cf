import { promisify } from "node:util";
import { ServerCredentials } from "@grpc/grpc-js";
import type { Interceptor } from "slonik";
import packageJson from "../package.json" with { type: "json" };
import { createAuditHead } from "./audit/head.ts";
import { type Sequencer, startSequencer } from "./audit/sequencer.ts";
import type { Config } from "./config.ts";
import { type Pepper, addressText } from "./config-values.ts";
import { openConfiguredFiles } from "./configured-files.ts";
import { type Database, openDatabase } from "./db/pool.ts";
import { schedulePurge } from "./db/purge.ts";
import { createSenders, startDelivery } from "./delivery/delivery.ts";
import type { Runner } from "./delivery/runner.ts";
import { createImplementations } from "./implementations.ts";
import type { Log } from "./log.ts";
import { createMacs } from "./macs.ts";
import { detached } from "./rpc/call.ts";
import { createConnectHandler } from "./rpc/connect.ts";
import { createGrpcServer } from "./rpc/grpc.ts";
import { type Health, createHealth } from "./rpc/health.ts";
import { createHttpServer, createSideRoutes } from "./rpc/http.ts";
import { bindMethods } from "./rpc/methods.ts";
import { type Metrics, createMetrics } from "./rpc/metrics.ts";
import { createPipeline } from "./rpc/pipeline.ts";
import { addReflection } from "./rpc/reflection.ts";
import { shutDown } from "./shutdown.ts";
import { startTracing } from "./tracing.ts";

/** A server that takes calls. */
export interface RunningServer {
  readonly grpcPort: number;
  /** Undefined where the HTTP port is off. */
  readonly httpPort: number | undefined;
  readonly readiness: Health["readiness"];
  /** Drains: turns pollers away, waits for them to notice, lets calls end, then ends everything. */
  stop(): Promise<void>;
}

interface ServerOptions {
  readonly config: Config;
  readonly databaseUrl: string;
  readonly peppers: readonly Pepper[];
  /** Where the keys of access tokens are: a JWKS file, read again when it changes. */
  readonly jwtKeysFile: string;
  readonly log: Log;
  /** Watches every statement; tests hold row schemas against the database with it. */
  readonly interceptors?: readonly Interceptor[];
}

// Health must see the database, not our own queue before it, and be told within its poll.
const probeSettings = (database: Config["database"]): Config["database"] => ({
  ...database,
  poolMax: 2,
  poolWaitMs: 1_000,
  connectTimeoutMs: 800,
  statementTimeoutMs: 800,
});

/** Says which variables have the address that cannot be listened on. */
const onPort = async <T>(variables: string, binding: T): Promise<Awaited<T>> => {
  try {
    return await binding;
  } catch (error) {
    throw new Error(`${variables}: ${(error as Error).message}`, { cause: error });
  }
};

/** The first caller shall not wait for the first connection; where there is none to be had, the start goes on. */
const warmUp = (db: Database, log: Log): Promise<void> =>
  db.use(detached(), () => Promise.resolve()).catch((error: unknown) => log.warn({ err: error }, "no connection yet"));

interface HealthParts {
  readonly db: Database;
  readonly probe: Database;
  readonly metrics: Metrics;
  readonly log: Log;
}

/** Health, and what follows it: the metric, and whether calls wait for the database at all. */
const followHealth = ({ db, probe, metrics, log }: HealthParts, services: readonly string[]): Health => {
  const health = createHealth({
    probe,
    services,
    log,
    // Two pings fail before calls are refused; until then new connections may get through where old ones hang. The probe's
    // too: what its settings name, such as a file of authorities, may be another one by now.
    onFailure() {
      db.renew();
      probe.renew();
    },
    onChange(readiness) {
      metrics.setHealthy(readiness === "ready");
      // Health no longer asks the database then: what it last knew of it still holds.
      if (readiness !== "shutting down") db.setDown(readiness !== "ready");
    },
  });
  // Until it has seen the database, nobody waits for that.
  db.setDown(true);
  return health;
};

/** Puts everything together. */
export const startServer = async (options: ServerOptions): Promise<RunningServer> => {
  const { config, databaseUrl, peppers, log, interceptors = [] } = options;
  const { templates, certificates, keys } = await openConfiguredFiles(config, options.jwtKeysFile, log);
  const metrics = createMetrics(packageJson.version);
  const tracing = await startTracing(config.tracing, log);
  const database = { url: databaseUrl, log, interceptors };
  const db = openDatabase({ ...database, settings: config.database, onWait: metrics.observePoolWait, tracing });
  const probe = openDatabase({ ...database, settings: probeSettings(config.database) });
  metrics.watchPool(db.load);

  const macs = createMacs(peppers);
  const auditHead = createAuditHead();
  const senders = createSenders(config.delivery);
  const channels = new Set(senders.keys());
  const parts = createImplementations({ config, db, probe, macs, keys, auditHead, channels, metrics, log });
  const { implementations, tokens, verifyActor, passwords } = parts;
  const services = implementations.map(({ service }) => service);
  const methods = bindMethods(implementations, metrics.meter, log);
  const pipeline = createPipeline({ tokens, verifyActor, log, callTimeoutMs: config.callTimeoutMs, tracing });

  const names = services.map(({ typeName }) => typeName);
  const health = followHealth({ db, probe, metrics, log }, names);
  const ready = () => health.readiness() === "ready";
  const grpc = createGrpcServer(config, pipeline, methods);
  health.addTo(grpc);
  if (config.grpc.reflection) addReflection(grpc, services);
  const sideRoutes = createSideRoutes({ metrics, isReady: ready, jwks: keys.jwks, log });
  const handler = createConnectHandler(pipeline, methods, config.messageMaxBytes, sideRoutes);
  const http = config.http.enabled ? createHttpServer({ config, handler, certificates }) : undefined;

  let delivery: Runner | undefined;
  let sequencer: Sequencer | undefined;
  const end = async (delayMs: number) => {
    const { graceMs } = config.shutdown;
    await shutDown({ delayMs, graceMs, health, pipeline, grpc, http, delivery, sequencer, databases: [db, probe] });
    certificates?.close();
    keys.close();
    await passwords.close();
    await tracing?.shutdown();
  };

  try {
    await health.start();
    if (ready()) await warmUp(db, log);
    const credentials = certificates?.grpcCredentials() ?? ServerCredentials.createInsecure();
    const address = addressText(config.grpc.host, config.grpc.port);
    const grpcPort = await onPort("GRPC_HOST, GRPC_PORT", promisify(grpc.bindAsync).call(grpc, address, credentials));
    const httpPort = await onPort("HTTP_HOST, HTTP_PORT", http?.listen());
    const { registry } = metrics;
    delivery = startDelivery({ config, databaseUrl, db, probe, macs, templates, senders, registry, log, ready });
    const intervalMs = config.auditSequenceIntervalMs;
    sequencer = startSequencer({ db, head: auditHead, intervalMs, log, ready });
    const stopPurge = schedulePurge(db, config.purge, log);
    const stop = () => {
      stopPurge();
      return end(config.shutdown.delayMs);
    };
    return { grpcPort, httpPort, readiness: health.readiness, stop };
  } catch (error) {
    // A port that is taken must not leave the other one served by a process that nobody knows to be half alive.
    await end(0);
    throw error;
  }
};
