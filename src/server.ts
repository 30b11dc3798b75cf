import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { type Server, ServerCredentials } from "@grpc/grpc-js";
import type { Interceptor } from "slonik";
import { createAuditHead } from "./audit/head.ts";
import { type Sequencer, startSequencer } from "./audit/sequencer.ts";
import { createAccessTokens } from "./auth/access-tokens.ts";
import { createGoogle } from "./auth/google.ts";
import { authHandlers } from "./auth/handlers.ts";
import type { AuthParts } from "./auth/parts.ts";
import { createPasswords } from "./auth/passwords.ts";
import { createSessions } from "./auth/sessions.ts";
import { watchSigningKeys } from "./auth/signing-keys.ts";
import { createThrottles } from "./auth/throttles.ts";
import type { Config } from "./config.ts";
import { type Pepper, addressText } from "./config-values.ts";
import { verifiedTls } from "./db/connections.ts";
import { type Database, openDatabase } from "./db/pool.ts";
import { schedulePurge } from "./db/purge.ts";
import { availableChannels } from "./delivery/channels.ts";
import { startDelivery } from "./delivery/delivery.ts";
import type { Runner } from "./delivery/runner.ts";
import { loadTemplates } from "./delivery/templates.ts";
import { AuthService } from "./gen/auth/v1/auth_pb.ts";
import { OrgService } from "./gen/org/v1/org_pb.ts";
import { ServiceIdentityService } from "./gen/service_identity/v1/service_identity_pb.ts";
import type { Log } from "./log.ts";
import { orgHandlers } from "./org/handlers.ts";
import { detached } from "./rpc/call.ts";
import { createConnectHandler } from "./rpc/connect.ts";
import { createGrpcServer } from "./rpc/grpc.ts";
import { type Health, createHealth } from "./rpc/health.ts";
import { type HttpServer, createHttpServer, createSideRoutes } from "./rpc/http.ts";
import { bindMethods, implementation } from "./rpc/methods.ts";
import { createMetrics } from "./rpc/metrics.ts";
import { type Pipeline, createPipeline } from "./rpc/pipeline.ts";
import { addReflection } from "./rpc/reflection.ts";
import { watchCertificates } from "./rpc/tls.ts";
import { createCredentialHasher } from "./service-identity/credentials.ts";
import { createMacs } from "./macs.ts";
import { permissionHandlers } from "./service-identity/permissions.ts";
import { secretHandlers } from "./service-identity/secrets.ts";
import { serviceSessionHandlers } from "./service-identity/service-sessions.ts";
import { createServiceTokens } from "./service-identity/service-tokens.ts";
import { serviceHandlers } from "./service-identity/services.ts";
import { signInHandlers } from "./service-identity/sign-in.ts";
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

export interface ServerOptions {
  readonly config: Config;
  readonly databaseUrl: string;
  readonly peppers: readonly Pepper[];
  /** Where the keys of access tokens are: a JWKS file, read again when it changes. */
  readonly jwtKeysFile: string;
  readonly log: Log;
  /** Watches every statement; tests hold row schemas against the database with it. */
  readonly interceptors?: readonly Interceptor[];
}

const VERSION = (
  JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { readonly version: string }
).version;

// Health must see the database, not our own queue before it, and be told within its poll.
const probeSettings = (database: Config["database"]): Config["database"] => ({
  ...database,
  poolMax: 2,
  poolWaitMs: 1_000,
  connectTimeoutMs: 800,
  statementTimeoutMs: 800,
});

const bindGrpc = (server: Server, address: string, credentials: ServerCredentials): Promise<number> =>
  new Promise((resolve, reject) => {
    server.bindAsync(address, credentials, (error, port) => (error ? reject(error) : resolve(port)));
  });

const drainGrpc = (server: Server): Promise<void> => new Promise((resolve) => server.tryShutdown(() => resolve()));

/** The first caller shall not wait for the first connection; where there is none to be had, the start goes on. */
const warmUp = (db: Database, log: Log): Promise<void> =>
  db.use(detached(), () => Promise.resolve()).catch((error: unknown) => log.warn({ err: error }, "no connection yet"));

/** How long what is cut off may take to be gone: grpc-js waits for whoever has not begun to speak TLS, and cuts nobody off. */
const FORCED_MS = 500;

interface Parts {
  readonly delayMs: number;
  readonly graceMs: number;
  readonly health: Health;
  readonly pipeline: Pipeline;
  readonly grpc: Server;
  readonly http: HttpServer | undefined;
  readonly delivery: Runner | undefined;
  readonly sequencer: Sequencer | undefined;
  readonly databases: readonly Database[];
}

/** NOT_SERVING, wait for endpoints to notice, take no new call, drain, force what stays, close the pool. */
const shutDown = async (parts: Parts): Promise<void> => {
  const { delayMs, graceMs, health, pipeline, grpc, http, delivery, sequencer, databases } = parts;
  health.leave();
  await sleep(delayMs);
  health.endWatches();
  pipeline.endStreams();
  const drained = Promise.all([drainGrpc(grpc), http?.drain(), delivery?.stop(graceMs), sequencer?.stop()]);
  const over = new AbortController();
  const forced = async () => {
    await sleep(graceMs, undefined, { signal: over.signal });
    grpc.forceShutdown();
    http?.force();
    await sleep(FORCED_MS, undefined, { signal: over.signal });
  };
  await Promise.race([drained, forced().catch(() => drained)]);
  over.abort();
  await Promise.all(databases.map((database) => database.end()));
};

/** Puts everything together: the one place where parts meet. */
export const startServer = async (options: ServerOptions): Promise<RunningServer> => {
  const { config, databaseUrl, peppers, log, interceptors = [] } = options;
  const templates = loadTemplates(config.delivery);
  const metrics = createMetrics(VERSION);
  const tracing = await startTracing(config.tracing, log);
  const certificates = config.tls && (await watchCertificates(config.tls, { pollMs: config.tls.pollMs, log }));
  const keys = await watchSigningKeys({ file: options.jwtKeysFile, pollMs: config.accessTokens.pollMs, log });
  // Connections are opened later, and again after failures; a start without the file of authorities is none.
  verifiedTls(config.database);
  const database = { url: databaseUrl, log, interceptors };
  const db = openDatabase({ ...database, settings: config.database, onWait: metrics.observePoolWait, tracing });
  const probe = openDatabase({ ...database, settings: probeSettings(config.database) });
  metrics.watchPool(db.load);

  const macs = createMacs(peppers);
  const hasher = createCredentialHasher(macs);
  const tokens = createServiceTokens(db, hasher);
  const accessTokens = createAccessTokens({ db, keys, config: config.accessTokens });
  const passwords = createPasswords(config.passwords);
  metrics.watchPasswordQueue(passwords.queueLength);
  const auth: AuthParts = {
    db,
    config,
    macs,
    keys,
    accessTokens,
    passwords,
    sessions: createSessions({ macs, accessTokens, config: config.sessions }),
    throttles: createThrottles({ db, macs, config: config.throttles, log, onRefused: metrics.countRefusedTry }),
    google: createGoogle(config.google),
    channels: availableChannels(config.delivery),
  };
  const parts = { db, hasher, tokens };
  const auditHead = createAuditHead();
  const implementations = [
    implementation(AuthService, authHandlers(auth)),
    implementation(OrgService, orgHandlers({ db, config, macs, passwords, auditHead, forgetTokens: tokens.forget })),
    implementation(ServiceIdentityService, {
      ...serviceHandlers(parts),
      ...secretHandlers(parts),
      ...permissionHandlers(parts),
      ...signInHandlers(parts, config.serviceTokenTtlMs),
      ...serviceSessionHandlers(parts),
    }),
  ];
  const services = implementations.map(({ service }) => service);
  const methods = bindMethods(implementations, metrics.meter, log);
  const pipeline = createPipeline({
    tokens,
    async verifyActor(token, call) {
      const verified = await accessTokens.verify(call, token);
      return verified.reason === "OK" ? verified : undefined;
    },
    log,
    callTimeoutMs: config.callTimeoutMs,
    tracing,
  });

  const health = createHealth({
    probe,
    services: services.map(({ typeName }) => typeName),
    log,
    // Two pings fail before calls are refused; until then new connections may get through where old ones hang.
    onFailure: db.renew,
    onChange(readiness) {
      metrics.setHealthy(readiness === "ready");
      // Who leaves looks no more: what was known of the database then is still the best that is known.
      if (readiness !== "shutting down") db.setDown(readiness !== "ready");
    },
  });
  const grpc = createGrpcServer(config, pipeline, methods);
  health.addTo(grpc);
  if (config.grpc.reflection) addReflection(grpc, services);
  const sideRoutes = createSideRoutes({
    metrics,
    isReady: () => health.readiness() === "ready",
    jwks: keys.jwks,
  });
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
    // Until health has seen the database, nobody waits for it.
    db.setDown(true);
    await health.start();
    if (health.readiness() === "ready") await warmUp(db, log);
    const credentials = certificates?.grpcCredentials() ?? ServerCredentials.createInsecure();
    const grpcPort = await bindGrpc(grpc, addressText(config.grpc.host, config.grpc.port), credentials);
    const httpPort = await http?.listen();
    const ready = () => health.readiness() === "ready";
    const { registry } = metrics;
    delivery = startDelivery({ config, databaseUrl, db, probe, macs, templates, registry, log, ready });
    const intervalMs = config.auditSequenceIntervalMs;
    sequencer = startSequencer({ db, head: auditHead, intervalMs, log, ready });
    const stopPurge = schedulePurge(db, config.purge, log);
    return {
      grpcPort,
      httpPort,
      readiness: health.readiness,
      stop: () => {
        stopPurge();
        return end(config.shutdown.delayMs);
      },
    };
  } catch (error) {
    // A port that is taken must not leave the other one served by a process that nobody knows to be half alive.
    await end(0);
    throw error;
  }
};
