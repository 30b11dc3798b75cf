import { randomBytes } from "node:crypto";
import { type Client, type Interceptor as ClientInterceptor, createClient } from "@connectrpc/connect";
import type { DatabasePool } from "slonik";
import { inject, vi } from "vitest";
import { type Config, parseConfig } from "../../src/config.ts";
import type { Pepper } from "../../src/config-values.ts";
import { AuthService } from "../../src/gen/auth/v1/auth_pb.ts";
import { OrgService } from "../../src/gen/org/v1/org_pb.ts";
import { ServiceIdentityService } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { type Log, createLog } from "../../src/log.ts";
import { type RunningServer, startServer } from "../../src/server.ts";
import { openPool } from "./admin.ts";
import { type TransportName, channelOf } from "./channels.ts";
import { createDatabase, createRootedDatabase } from "./database.ts";
import { oncePerFile, onFileFinished } from "./per-file.ts";
import { PEPPERS, makeRoot } from "./root.ts";
import { statementSchemas } from "./statement-schemas.ts";

export { type TransportName, transports } from "./channels.ts";

/** Typed clients that send one service token. */
export interface Clients {
  readonly auth: Client<typeof AuthService>;
  readonly org: Client<typeof OrgService>;
  readonly services: Client<typeof ServiceIdentityService>;
}

/** A server and its database, whoever speaks to it. */
interface Launched extends RunningServer {
  readonly databaseUrl: string;
  readonly config: Config;
  /** A pool of the test's own, to look behind the API. */
  readonly pool: DatabasePool;
  readonly rootSecret: string;
  readonly rootToken: string;
}

export interface TestService extends Launched, Clients {
  /** Clients with another token, or none; `headers` go with every call. */
  as(token: string | undefined, headers?: Readonly<Record<string, string>>): Clients;
  /** A service with these permissions, signed in. Without `tenantId` it has no tenant. */
  addService(permissions: readonly string[], tenantId?: string): Promise<SignedInService>;
  addTenant(label?: string): Promise<string>;
}

export interface SignedInService extends Clients {
  readonly serviceId: string;
  readonly key: string;
  readonly secretId: string;
  readonly secret: string;
  readonly token: string;
}

export interface StartOptions {
  /** Variables of the environment, beside those that every test server has. */
  readonly env?: Readonly<Record<string, string>>;
  readonly log?: Log;
  readonly databaseUrl?: string;
  readonly peppers?: readonly Pepper[];
  /** Any free one where it is not named. */
  readonly httpPort?: number;
}

/** The JWKS file of a test's server. */
export const jwtKeysFile = ({ accessTokens }: Config): string => accessTokens.keysFile ?? inject("jwtKeysFile");

const withHeaders =
  (headers: Readonly<Record<string, string>>): ClientInterceptor =>
  (next) =>
  (request) => {
    for (const [name, value] of Object.entries(headers)) request.header.set(name, value);
    return next(request);
  };

/** A key that no other test has. */
export const uniqueKey = (): string => `svc-${randomBytes(8).toString("hex")}`;

/** How clients are made that send these headers. */
type Connect = (headers: Readonly<Record<string, string>>) => Clients;

/** Makes clients of a server's port. */
export const clientsOf = (transport: TransportName, server: Pick<RunningServer, "grpcPort" | "httpPort">): Connect => {
  return (headers) => {
    const channel = channelOf(transport, server, [withHeaders(headers)]);
    return {
      auth: createClient(AuthService, channel),
      org: createClient(OrgService, channel),
      services: createClient(ServiceIdentityService, channel),
    };
  };
};

/** A database with `root` in it, and root's secret: "" where the database that was handed in had its root already. */
const rootedDatabase = async ({ databaseUrl, peppers }: StartOptions) => {
  if (!databaseUrl && !peppers) return { ...(await createRootedDatabase()), rootSecret: inject("rootSecret") };
  const database = databaseUrl ? { url: databaseUrl, drop: () => Promise.resolve() } : await createDatabase();
  return { ...database, rootSecret: (await makeRoot(database.url, peppers)) ?? "" };
};

/** The deadline of a server's first call, which on a busy machine takes longer than a CALL_TIMEOUT that a test sets. */
export const FIRST_CALL_MS = 30_000;

const launch = async (options: StartOptions): Promise<Launched> => {
  const { rootSecret, ...database } = await rootedDatabase(options);
  const parsed = parseConfig({
    NODE_ENV: "test",
    LOG_LEVEL: "silent",
    GRPC_HOST: "127.0.0.1",
    GRPC_PORT: "0",
    // It reads all protos anew for each server, which is a fifth of a start.
    GRPC_REFLECTION: "off",
    // Each that sends at once has a connection from the start, and most tests send nothing.
    DELIVERY_CONCURRENCY: "1",
    ...options.env,
  });
  const config: Config = {
    ...parsed,
    http: { ...parsed.http, enabled: true, host: "127.0.0.1", port: options.httpPort ?? 0 },
  };
  const { peppers = PEPPERS } = options;
  const log = options.log ?? createLog(config.logLevel);
  const server = await startServer({
    config,
    databaseUrl: database.url,
    peppers,
    jwtKeysFile: jwtKeysFile(config),
    log,
    interceptors: [statementSchemas],
  });
  // On a busy machine the first ping may come too late; the next one comes in a second.
  await vi.waitUntil(() => server.readiness() === "ready", { timeout: 30_000, interval: 20 });
  const pool = await openPool(database.url, 2);
  const { services } = clientsOf("grpc", server)({});
  const { serviceToken: rootToken } = rootSecret
    ? await services.authenticateService({ key: "root", secret: rootSecret }, { timeoutMs: FIRST_CALL_MS })
    : { serviceToken: "" };

  return {
    ...server,
    databaseUrl: database.url,
    config,
    pool,
    rootSecret,
    rootToken,
    async stop() {
      await server.stop();
      await pool.end();
      await database.drop();
    },
  };
};

/** A server with clients that are made so. */
export const speaking = (connect: Connect, launched: Launched): TestService => {
  const as = (token: string | undefined, headers: Readonly<Record<string, string>> = {}) =>
    connect(token === undefined ? headers : { authorization: `Bearer ${token}`, ...headers });
  const root = as(launched.rootToken);

  return {
    ...launched,
    ...root,
    as,
    async addService(permissions, tenantId) {
      const key = uniqueKey();
      const registration = { key, label: key, permissions: [...permissions], ...(tenantId && { tenantId }) };
      const { service, secret, secretId } = await root.services.registerService(registration);
      const { serviceToken: token } = await root.services.authenticateService({ key, secret });
      return { serviceId: service?.serviceId ?? "", key, secret, secretId, token, ...as(token) };
    },
    async addTenant(label = "Tenant") {
      const { tenant } = await root.org.createTenant({ label });
      return tenant?.tenantId ?? "";
    },
  };
};

const speakingOver = (transport: TransportName, launched: Launched): TestService =>
  speaking(clientsOf(transport, launched), launched);

/** A server of the test's own on a database of its own, on free ports. The test stops it. */
export const launchService = async (transport: TransportName, options: StartOptions = {}): Promise<TestService> =>
  speakingOver(transport, await launch(options));

const launchUntilFileEnds = async (options: StartOptions): Promise<Launched> => {
  const launched = await launch(options);
  onFileFinished(launched.stop);
  return launched;
};

/** A server that ends with the running file. */
export const launchForFile = async (transport: TransportName, options: StartOptions = {}): Promise<TestService> =>
  speakingOver(transport, await launchUntilFileEnds(options));

const launchOnce = oncePerFile(launchUntilFileEnds);
const ORDINARY: StartOptions = {};

/** The server that a file's tests share, by either of its transports; it ends with the file. */
export const startService = oncePerFile(async (transport: TransportName) =>
  speakingOver(transport, await launchOnce(ORDINARY)),
);
