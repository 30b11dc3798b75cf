import { availableParallelism } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { type Pepper, commaSeparated, duration, flag, integer, peppers, postgresUrl, urlOf } from "./config-values.ts";

const YEARS_10_MS = 3_650 * 86_400_000;

/** Every variable the service reads, with its default; `.env.example` says the same and a test holds the two equal. */
export const environment = z.object({
  NODE_ENV: z
    .enum(["development", "production", "test"], "must be development, production or test")
    .prefault("development"),
  GRPC_HOST: z.string().prefault("0.0.0.0"),
  GRPC_PORT: integer(0, 65_535).prefault("50051"),
  GRPC_REFLECTION: flag.prefault("on"),
  GRPC_MAX_CONCURRENT_STREAMS: integer(1, 1_000_000).prefault("1000"),
  GRPC_CONNECTION_AGE: duration(1_000).prefault("5m"),
  GRPC_CONNECTION_AGE_GRACE: duration(1_000).prefault("30s"),
  GRPC_CONNECTION_IDLE: duration(1_000).prefault("5m"),
  HTTP_HOST: z.string().prefault("0.0.0.0"),
  HTTP_PORT: integer(0, 65_535).prefault("8080"),
  CORS_ORIGINS: commaSeparated.prefault(""),
  MESSAGE_MAX_BYTES: integer(1_024, 64 * 1_048_576).prefault("4194304"),
  CALL_TIMEOUT: duration(1).prefault("30s"),
  TLS_CERT_FILE: z.string().optional(),
  TLS_KEY_FILE: z.string().optional(),
  TLS_CLIENT_CA_FILE: z.string().optional(),
  TLS_RELOAD_INTERVAL: duration(100).prefault("10s"),
  DATABASE_URL: postgresUrl.optional(),
  DATABASE_POOL_MAX: integer(1, 1_000).prefault("10"),
  DATABASE_POOL_WAIT: duration(1).prefault("10s"),
  DATABASE_POOL_QUEUE: integer(0, 1_000_000).prefault("5000"),
  DATABASE_CONNECT_TIMEOUT: duration(1).prefault("3s"),
  DATABASE_STATEMENT_TIMEOUT: z.union([z.literal("off").transform(() => undefined), duration(1)]).prefault("5s"),
  DATABASE_IDLE_TIMEOUT: duration(1_000).prefault("1m"),
  DATABASE_TLS: z.enum(["url", "verify", "off"], "must be url, verify or off").prefault("url"),
  DATABASE_TLS_CA_FILE: z.string().optional(),
  DATABASE_PGBOUNCER: flag.prefault("off"),
  DATA_DIR: z.string().prefault(".data"),
  SECRET_PEPPERS: peppers.optional(),
  SERVICE_TOKEN_TTL: duration(1_000, 86_400_000).prefault("1h"),
  JWT_KEYS_FILE: z.string().optional(),
  JWT_KEYS_RELOAD_INTERVAL: duration(100).prefault("10s"),
  JWT_ISSUER: z.string().prefault("auth-service"),
  JWT_AUDIENCE: z.string().prefault("auth-service"),
  ACCESS_TOKEN_TTL: duration(1_000, 86_400_000).prefault("10m"),
  SESSION_IDLE_TTL: duration(1_000, YEARS_10_MS).prefault("30d"),
  SESSION_MAX_TTL: duration(1_000, YEARS_10_MS).prefault("90d"),
  SESSIONS_PER_USER_MAX: integer(1, 10_000).prefault("1000"),
  REFRESH_GRACE: duration(0, 3_600_000).prefault("10s"),
  PASSWORD_HASH_MEMORY_KIB: integer(8, 1_048_576).prefault("19456"),
  PASSWORD_HASH_PASSES: integer(1, 100).prefault("2"),
  PASSWORD_HASH_PARALLELISM: integer(1, 16).prefault("1"),
  PASSWORD_HASH_THREADS: integer(1, 256).optional(),
  PASSWORD_HASH_QUEUE: integer(0, 1_000_000).prefault("1000"),
  OTP_TTL: duration(1_000, 86_400_000).prefault("5m"),
  OTP_ATTEMPT_MAX: integer(1, 10).prefault("5"),
  OTP_REQUEST_INTERVAL: duration(0, 86_400_000).prefault("60s"),
  OTP_REQUESTS_PER_HOUR: integer(1, 1_000).prefault("5"),
  THROTTLES: flag.prefault("on"),
  THROTTLE_WINDOW: duration(1_000, 86_400_000).prefault("10m"),
  THROTTLE_IDENTIFIER_ADDRESS: integer(1, 1_000_000).prefault("10"),
  THROTTLE_IDENTIFIER: integer(1, 1_000_000).prefault("30"),
  THROTTLE_ADDRESS: integer(1, 1_000_000).prefault("100"),
  THROTTLE_TENANT: integer(1, 1_000_000_000).prefault("5000"),
  KNOWN_NETWORK_LIFE: duration(0, YEARS_10_MS).prefault("90d"),
  GOOGLE_CLIENT_IDS: commaSeparated.prefault(""),
  GOOGLE_JWKS_URL: urlOf("https", "http").prefault("https://www.googleapis.com/oauth2/v3/certs"),
  GOOGLE_TIMEOUT: duration(1, 60_000).prefault("3s"),
  SMTP_URL: urlOf("smtp", "smtps").optional(),
  MAIL_FROM: z.string().optional(),
  TWILIO_ACCOUNT_SID: z.string().optional(),
  TWILIO_AUTH_TOKEN: z.string().optional(),
  TWILIO_FROM: z.string().optional(),
  TWILIO_WHATSAPP_FROM: z.string().optional(),
  TWILIO_BASE_URL: urlOf("https", "http").prefault("https://api.twilio.com"),
  MESSAGE_TEMPLATES_DIR: z.string().optional(),
  MESSAGE_LOCALE: z
    .string()
    .regex(/^[A-Za-z0-9-]{1,35}$/, "must be a locale such as en or pt-BR")
    .prefault("en"),
  DELIVERY_CONCURRENCY: integer(1, 100).prefault("5"),
  DELIVERY_ATTEMPT_MAX: integer(1, 25).prefault("6"),
  DELIVERY_TIMEOUT: duration(1, 600_000).prefault("10s"),
  SESSION_RETENTION: duration(0, YEARS_10_MS).prefault("30d"),
  PURGE_INTERVAL: duration(1_000).prefault("1h"),
  LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"], "must be a pino level or silent")
    .prefault("info"),
  SHUTDOWN_DELAY: duration(0).optional(),
  SHUTDOWN_GRACE: duration(1).prefault("20s"),
  OTEL_TRACES_EXPORTER: z.string().optional(),
  OTEL_EXPORTER_OTLP_ENDPOINT: z.string().optional(),
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: z.string().optional(),
  OTEL_SDK_DISABLED: z.string().optional(),
});

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

type Environment = z.output<typeof environment>;

const together = (env: Environment): string[] => {
  const production = env.NODE_ENV === "production";
  return [
    !!env.TLS_CERT_FILE !== !!env.TLS_KEY_FILE && "TLS_CERT_FILE, TLS_KEY_FILE: set both or neither",
    env.TLS_CLIENT_CA_FILE && !env.TLS_CERT_FILE && "TLS_CLIENT_CA_FILE: needs TLS_CERT_FILE and TLS_KEY_FILE",
    env.DATABASE_TLS_CA_FILE && env.DATABASE_TLS !== "verify" && "DATABASE_TLS_CA_FILE: needs DATABASE_TLS=verify",
    env.DATABASE_URL &&
      env.DATABASE_TLS === "url" &&
      !["disable", "no-verify", "require", null].includes(new URL(env.DATABASE_URL).searchParams.get("sslmode")) &&
      "DATABASE_URL: sslmode must be disable, no-verify or require; for verify-full set DATABASE_TLS=verify",
    production && !env.DATABASE_URL && "DATABASE_URL: required when NODE_ENV=production",
    production && !env.SECRET_PEPPERS && "SECRET_PEPPERS: required when NODE_ENV=production",
    production && !env.JWT_KEYS_FILE && "JWT_KEYS_FILE: required when NODE_ENV=production",
    env.PASSWORD_HASH_MEMORY_KIB < 8 * env.PASSWORD_HASH_PARALLELISM &&
      "PASSWORD_HASH_MEMORY_KIB: must be at least 8 times PASSWORD_HASH_PARALLELISM",
    env.SESSION_IDLE_TTL > env.SESSION_MAX_TTL && "SESSION_IDLE_TTL: must not be longer than SESSION_MAX_TTL",
    !!env.SMTP_URL !== !!env.MAIL_FROM && "SMTP_URL, MAIL_FROM: set both or neither",
    !!env.TWILIO_ACCOUNT_SID !== !!env.TWILIO_AUTH_TOKEN &&
      "TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN: set both or neither",
    env.TWILIO_ACCOUNT_SID &&
      !env.TWILIO_FROM &&
      !env.TWILIO_WHATSAPP_FROM &&
      "TWILIO_FROM, TWILIO_WHATSAPP_FROM: one of them is needed with TWILIO_ACCOUNT_SID",
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
  const known = Object.keys(environment.shape).map((name) => [name, variables[name]?.trim() || undefined]);
  const { success, data, error } = environment.safeParse(Object.fromEntries(known));
  if (!success) throw new ConfigError(error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`));
  const faults = together(data);
  if (faults.length > 0) throw new ConfigError(faults);
  return freeze(arrange(data));
};

/** The process's own configuration: a `.env` file where one exists, beneath the environment. */
export const loadConfig = (): Config => {
  try {
    process.loadEnvFile();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw new ConfigError([".env: cannot be read"]);
  }
  return parseConfig(process.env);
};
