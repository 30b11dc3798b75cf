import { availableParallelism } from "node:os";
import { join } from "node:path";
import { HASH_COST_MAX, SOCKET_URL, peppers, type Pepper } from "./config-values.ts";
import { type Environment, environment } from "./environment.ts";

/** What is wrong with the environment: every fault at once, each by the variable's name and never with its value. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  readonly faults: readonly string[];
  constructor(faults: readonly string[]) {
    super(`the configuration is not usable:\n${faults.map((fault) => `  ${fault}`).join("\n")}`);
    this.faults = faults;
  }
}

/**
 * Parses peppers that stand in a file.
 * @throws ConfigError that names the file.
 */
export const parsePeppers = (text: string, file: string): readonly Pepper[] => {
  const { success, data, error } = peppers.safeParse(text);
  if (!success) throw new ConfigError(error.issues.map(({ message }) => `${file}: ${message}`));
  return data;
};

/** Of what a URL may say of TLS to others: nothing reads it, and the connection would be less safe than it looks. */
const UNREAD = ["ssl", "sslrootcert", "sslcert", "sslkey"] as const;

/** Of these the migrations' driver heeds the one behind the `?`, and the service the other: each would have its own database. */
const ENDPOINT = ["host", "port", "user", "password"] as const;

const urlFaults = ({ DATABASE_URL: url, DATABASE_TLS: tls }: Environment): string[] => {
  if (url === undefined) return [];
  const { hostname, searchParams } = new URL(url);
  const modes = searchParams.getAll("sslmode");
  const unread = UNREAD.filter((name) => searchParams.has(name));
  // A socket's folder may stand there alone, which all heed.
  const misplaced = ENDPOINT.filter((name) => searchParams.has(name) && (name !== "host" || hostname !== ""));
  const place = `before the database's name, not behind a ?${hostname === "" ? `; a socket's folder then too: ${SOCKET_URL}` : ""}`;
  const isMode = (mode: string) => ["disable", "no-verify", "require"].includes(mode);
  return [
    ...(tls === "url" && !modes.every(isMode)
      ? ["DATABASE_URL: sslmode must be disable, no-verify or require; for verify-full set DATABASE_TLS=verify"]
      : []),
    // Of two the driver heeds the last, and the migrations another.
    ...(modes.length > 1 ? ["DATABASE_URL: sslmode stands there twice"] : []),
    ...unread.map((name) => `DATABASE_URL: ${name} is not read; set sslmode, or DATABASE_TLS=verify`),
    ...misplaced.map((name) => `DATABASE_URL: ${name} must stand ${place}`),
  ];
};

const together = (env: Environment): string[] => {
  const production = env.NODE_ENV === "production";
  return [
    !!env.TLS_CERT_FILE !== !!env.TLS_KEY_FILE && "TLS_CERT_FILE, TLS_KEY_FILE: set both or neither",
    env.TLS_CLIENT_CA_FILE && !env.TLS_CERT_FILE && "TLS_CLIENT_CA_FILE: needs TLS_CERT_FILE and TLS_KEY_FILE",
    env.DATABASE_TLS_CA_FILE && env.DATABASE_TLS !== "verify" && "DATABASE_TLS_CA_FILE: needs DATABASE_TLS=verify",
    ...urlFaults(env),
    production && !env.DATABASE_URL && "DATABASE_URL: required when NODE_ENV=production",
    production && !env.SECRET_PEPPERS && "SECRET_PEPPERS: required when NODE_ENV=production",
    production && !env.JWT_KEYS_FILE && "JWT_KEYS_FILE: required when NODE_ENV=production",
    env.PASSWORD_HASH_MEMORY_KIB < 8 * env.PASSWORD_HASH_PARALLELISM &&
      "PASSWORD_HASH_MEMORY_KIB: must be at least 8 times PASSWORD_HASH_PARALLELISM",
    env.PASSWORD_HASH_MEMORY_KIB * env.PASSWORD_HASH_PASSES > HASH_COST_MAX.memoryPassesKib &&
      `PASSWORD_HASH_MEMORY_KIB, PASSWORD_HASH_PASSES: together at most ${HASH_COST_MAX.memoryPassesKib}`,
    env.SESSION_IDLE_TTL > env.SESSION_MAX_TTL && "SESSION_IDLE_TTL: must not be longer than SESSION_MAX_TTL",
    !!env.SMTP_URL !== !!env.MAIL_FROM && "SMTP_URL, MAIL_FROM: set both or neither",
    !!env.TWILIO_ACCOUNT_SID !== !!env.TWILIO_AUTH_TOKEN &&
      "TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN: set both or neither",
    env.TWILIO_ACCOUNT_SID &&
      !env.TWILIO_FROM &&
      !env.TWILIO_WHATSAPP_FROM &&
      "TWILIO_FROM, TWILIO_WHATSAPP_FROM: one of them is needed with TWILIO_ACCOUNT_SID",
    (env.TWILIO_FROM ?? env.TWILIO_WHATSAPP_FROM) &&
      !env.TWILIO_ACCOUNT_SID &&
      !env.TWILIO_AUTH_TOKEN &&
      "TWILIO_FROM, TWILIO_WHATSAPP_FROM: need TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN",
    env.HTTP_PORT !== 0 && env.HTTP_PORT === env.GRPC_PORT && "HTTP_PORT: must differ from GRPC_PORT",
  ].filter((fault): fault is string => typeof fault === "string");
};

const tracingEnabled = (env: Environment) =>
  env.OTEL_SDK_DISABLED?.toLowerCase() !== "true" &&
  (env.OTEL_TRACES_EXPORTER !== undefined
    ? env.OTEL_TRACES_EXPORTER !== "none"
    : (env.OTEL_EXPORTER_OTLP_ENDPOINT ?? env.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) !== undefined);

const arrange = (env: Environment) => ({
  production: env.NODE_ENV === "production",
  dataDir: env.DATA_DIR,
  logLevel: env.LOG_LEVEL,
  callTimeoutMs: env.CALL_TIMEOUT,
  messageMaxBytes: env.MESSAGE_MAX_BYTES,
  grpc: {
    host: env.GRPC_HOST,
    port: env.GRPC_PORT,
    reflection: env.GRPC_REFLECTION,
    maxConcurrentStreams: env.GRPC_MAX_CONCURRENT_STREAMS,
    connectionAgeMs: env.GRPC_CONNECTION_AGE,
    connectionAgeGraceMs: env.GRPC_CONNECTION_AGE_GRACE,
    connectionIdleMs: env.GRPC_CONNECTION_IDLE,
  },
  http: { enabled: env.HTTP_PORT !== 0, host: env.HTTP_HOST, port: env.HTTP_PORT, corsOrigins: env.CORS_ORIGINS },
  tls:
    env.TLS_CERT_FILE && env.TLS_KEY_FILE
      ? {
          certFile: env.TLS_CERT_FILE,
          keyFile: env.TLS_KEY_FILE,
          clientCaFile: env.TLS_CLIENT_CA_FILE,
          pollMs: env.TLS_RELOAD_INTERVAL,
        }
      : undefined,
  database: {
    url: env.DATABASE_URL,
    poolMax: env.DATABASE_POOL_MAX,
    poolWaitMs: env.DATABASE_POOL_WAIT,
    poolQueue: env.DATABASE_POOL_QUEUE,
    connectTimeoutMs: env.DATABASE_CONNECT_TIMEOUT,
    statementTimeoutMs: env.DATABASE_STATEMENT_TIMEOUT,
    idleTimeoutMs: env.DATABASE_IDLE_TIMEOUT,
    tls: env.DATABASE_TLS,
    tlsCaFile: env.DATABASE_TLS_CA_FILE,
    pgBouncer: env.DATABASE_PGBOUNCER,
  },
  peppers: env.SECRET_PEPPERS,
  /** Whom a command calls the server as. */
  serviceToken: env.SERVICE_TOKEN,
  serviceTokenTtlMs: env.SERVICE_TOKEN_TTL,
  accessTokens: {
    keysFile: env.JWT_KEYS_FILE,
    pollMs: env.JWT_KEYS_RELOAD_INTERVAL,
    issuer: env.JWT_ISSUER,
    audience: env.JWT_AUDIENCE,
    ttlMs: env.ACCESS_TOKEN_TTL,
  },
  sessions: {
    idleTtlMs: env.SESSION_IDLE_TTL,
    maxTtlMs: env.SESSION_MAX_TTL,
    perUserMax: env.SESSIONS_PER_USER_MAX,
    refreshGraceMs: env.REFRESH_GRACE,
    knownNetworkMs: env.KNOWN_NETWORK_LIFE,
  },
  passwords: {
    memoryKib: env.PASSWORD_HASH_MEMORY_KIB,
    passes: env.PASSWORD_HASH_PASSES,
    parallelism: env.PASSWORD_HASH_PARALLELISM,
    threads: env.PASSWORD_HASH_THREADS ?? availableParallelism(),
    queueMax: env.PASSWORD_HASH_QUEUE,
  },
  otp: {
    ttlMs: env.OTP_TTL,
    attemptMax: env.OTP_ATTEMPT_MAX,
    requestIntervalMs: env.OTP_REQUEST_INTERVAL,
    requestsPerHour: env.OTP_REQUESTS_PER_HOUR,
  },
  throttles: {
    enabled: env.THROTTLES,
    windowMs: env.THROTTLE_WINDOW,
    identifierAddressMax: env.THROTTLE_IDENTIFIER_ADDRESS,
    identifierMax: env.THROTTLE_IDENTIFIER,
    addressMax: env.THROTTLE_ADDRESS,
    tenantMax: env.THROTTLE_TENANT,
  },
  tree: { depthMax: env.TREE_DEPTH_MAX, moveTimeoutMs: env.TREE_MOVE_TIMEOUT },
  invitationTtlMs: env.INVITATION_TTL,
  auditSequenceIntervalMs: env.AUDIT_SEQUENCE_INTERVAL,
  google: { clientIds: env.GOOGLE_CLIENT_IDS, jwksUrl: env.GOOGLE_JWKS_URL, timeoutMs: env.GOOGLE_TIMEOUT },
  delivery: {
    smtp: env.SMTP_URL && env.MAIL_FROM ? { url: env.SMTP_URL, from: env.MAIL_FROM } : undefined,
    twilio:
      env.TWILIO_ACCOUNT_SID && env.TWILIO_AUTH_TOKEN
        ? {
            accountSid: env.TWILIO_ACCOUNT_SID,
            authToken: env.TWILIO_AUTH_TOKEN,
            smsFrom: env.TWILIO_FROM,
            whatsAppFrom: env.TWILIO_WHATSAPP_FROM,
            baseUrl: env.TWILIO_BASE_URL,
          }
        : undefined,
    // What no provider is configured for goes into a folder, outside production alone.
    outboxDir: env.NODE_ENV === "production" ? undefined : join(env.DATA_DIR, "outbox"),
    templatesDir: env.MESSAGE_TEMPLATES_DIR,
    locale: env.MESSAGE_LOCALE,
    concurrency: env.DELIVERY_CONCURRENCY,
    attemptMax: env.DELIVERY_ATTEMPT_MAX,
    timeoutMs: env.DELIVERY_TIMEOUT,
  },
  purge: {
    intervalMs: env.PURGE_INTERVAL,
    sessionRetentionMs: env.SESSION_RETENTION,
    // A full bucket refuses for up to 5 windows after its own, and is known to have been full for one more.
    throttleMs: Math.max(3_600_000, 6 * env.THROTTLE_WINDOW),
    knownNetworkMs: env.KNOWN_NETWORK_LIFE,
  },
  shutdown: {
    delayMs: env.SHUTDOWN_DELAY ?? (env.NODE_ENV === "production" ? 5_000 : 0),
    graceMs: env.SHUTDOWN_GRACE,
  },
  tracing: tracingEnabled(env),
});

type DeepReadonly<T> = T extends Buffer ? T : T extends object ? { readonly [K in keyof T]: DeepReadonly<T[K]> } : T;
/** The whole configuration, in milliseconds and bytes, frozen. */
export type Config = DeepReadonly<ReturnType<typeof arrange>>;

const freeze = <T>(value: T): T => {
  if (typeof value !== "object" || value === null || Buffer.isBuffer(value)) return value;
  Object.values(value).forEach(freeze);
  return Object.freeze(value);
};

/**
 * Parses the environment once.
 *
 * An empty variable counts as one that is not set, as in docker-compose files.
 * @throws ConfigError that names everything that is wrong.
 */
export const parseConfig = (variables: Readonly<Record<string, string | undefined>>): Config => {
  const known = Object.keys(environment.shape).map((name) => [name, variables[name]?.trim() || undefined] as const);
  const issues = environment.safeParse(Object.fromEntries(known)).error?.issues ?? [];
  const broken = issues.map(({ path }) => path.join("."));
  // What goes together is looked at even so, with the defaults of what is broken, about which no more is said.
  const env = environment.parse(Object.fromEntries(known.filter(([name]) => !broken.includes(name))));
  const faults = [
    ...issues.map(({ message }, index) => `${broken[index]}: ${message}`),
    ...together(env).filter((fault) => !broken.some((name) => new RegExp(`\\b${name}\\b`).test(fault))),
  ];
  if (faults.length > 0) throw new ConfigError(faults);
  return freeze(arrange(env));
};

/** The process's own configuration: a `.env` file where one exists, beneath the environment. */
export const loadConfig = (): Config => {
  try {
    process.loadEnvFile();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw new ConfigError([".env: cannot be read"]);
  }
  // Node takes a byte order mark for part of the first name, which would be set for nobody; UTF-16's is no UTF-8 at all.
  if (Object.keys(process.env).some((name) => /^[\uFEFF\uFFFD]/.test(name)))
    throw new ConfigError([".env: must be UTF-8 without a byte order mark"]);
  return parseConfig(process.env);
};
