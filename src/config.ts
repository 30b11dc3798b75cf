import { z } from "zod";

const UNITS_MS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;
/** What a timer can hold, 24 days; beyond it Node fires at once. */
export const TIMER_MAX_MS = 2 ** 31 - 1;

const durationText = (text: string, context: z.RefinementCtx) => {
  const [, amount, unit] = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text) ?? [];
  if (amount && unit) return Number(amount) * UNITS_MS[unit as keyof typeof UNITS_MS];
  context.addIssue({ code: "custom", message: "must be a duration such as 250ms, 10s, 15m, 24h or 30d" });
  return z.NEVER;
};
/** Milliseconds; bounded by what a timer can hold unless a larger `max` is named. */
const duration = (min: number, max = TIMER_MAX_MS) =>
  z
    .string()
    .transform(durationText)
    .pipe(z.number().min(min, `must be at least ${min}ms`).max(max, `must be at most ${max}ms`));
const integer = (min: number, max: number) =>
  z
    .string()
    .regex(/^\d{1,10}$/, `must be a whole number from ${min} to ${max}`)
    .transform(Number)
    .pipe(z.number().min(min, `must be at least ${min}`).max(max, `must be at most ${max}`));
const flag = z.enum(["on", "off"], "must be on or off").transform((value) => value === "on");

const pepper = z
  .string()
  .regex(/^[1-9]\d{0,8}:[A-Za-z0-9+/]{43,}={0,2}$/)
  .transform((text) => {
    const [version, key] = text.split(":", 2) as [string, string];
    return { version: Number(version), key: Buffer.from(key, "base64") };
  });
const peppers = z
  .string()
  .transform((text) => z.array(pepper).safeParse(text.split(",").map((part) => part.trim())))
  .refine(
    ({ success, data }) =>
      success && new Set(data.map((p) => p.version)).size === data.length && data.every((p) => p.key.length >= 32),
    "must be version:base64 pairs with distinct versions, each key of 32 bytes or more, such as 1:…,2:…",
  )
  .transform(({ data }) => data ?? []);

/** A key for HMACs; `version` stands beside each hash, so that a pepper can be replaced while old hashes still verify. */
export type Pepper = z.output<typeof pepper>;

const postgresUrl = z
  .string()
  .refine((text) => /^postgres(ql)?:\/\//.test(text) && URL.canParse(text), "must be a postgresql:// URL");
const origins = z.string().transform((text) =>
  text
    .split(",")
    .map((origin) => origin.trim())
    .filter((origin) => origin !== ""),
);

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
  CORS_ORIGINS: origins.prefault(""),
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
  SESSION_RETENTION: duration(0, 3_650 * 86_400_000).prefault("30d"),
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
  purge: { intervalMs: env.PURGE_INTERVAL, sessionRetentionMs: env.SESSION_RETENTION },
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
