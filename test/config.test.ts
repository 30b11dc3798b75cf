import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Config, ConfigError, parseConfig } from "../src/config.ts";
import { environment } from "../src/environment.ts";
import { CHILD_ENV } from "./support/child-env.ts";

const MAIN = fileURLToPath(new URL("../src/main.ts", import.meta.url));
const DAY_MS = 86_400_000;
const PEPPER = Buffer.alloc(32, 1).toString("base64");
const PRODUCTION = {
  NODE_ENV: "production",
  DATABASE_URL: "postgresql://app:app@db.internal/auth",
  SECRET_PEPPERS: `1:${PEPPER}`,
  JWT_KEYS_FILE: "/run/secrets/jwt-keys.json",
};

const faultsOf = (variables: Record<string, string>): readonly string[] => {
  try {
    parseConfig(variables);
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.faults;
    throw error;
  }
};
const faultyNames = (variables: Record<string, string>) => faultsOf(variables).map((fault) => fault.split(":", 1)[0]);

const defaultOf = (schema: (typeof environment.shape)[keyof typeof environment.shape]) =>
  "defaultValue" in schema.def ? schema.def.defaultValue : undefined;

describe(".env.example", () => {
  test("has every variable of the code with its default, each below a comment", async () => {
    const lines = (await readFile(new URL("../.env.example", import.meta.url), "utf8")).split("\n");
    const documented = lines.flatMap((line, index) => {
      const [, absent, name = "", value] = /^(# )?([A-Z_]+)=(.*)$/.exec(line) ?? [];
      if (!name) return [];
      expect(lines[index - 1], `the line above ${name}`).toMatch(/^# \S+.*\.$/);
      return [[name, absent ? undefined : value] as const];
    });
    const read = Object.entries(environment.shape).map(([name, schema]) => [name, defaultOf(schema)] as const);
    expect(documented.toSorted()).toEqual(read.toSorted());
  });

  test("copied as it is, is the configuration without any variable", async () => {
    const text = await readFile(new URL("../.env.example", import.meta.url), "utf8");
    const lines = Array.from(
      text.matchAll(/^([A-Z_]+)=(.*)$/gm),
      ([, name = "", value = ""]) => [name, value] as const,
    );
    const variables: Record<string, string> = Object.fromEntries(lines);
    expect(parseConfig(variables)).toEqual(parseConfig({}));
  });
});

describe("faults", () => {
  test("are told all at once, each by its variable's name", () => {
    const broken = {
      NODE_ENV: "prod",
      GRPC_PORT: "65536",
      HTTP_PORT: "-1",
      GRPC_REFLECTION: "yes",
      MESSAGE_MAX_BYTES: "4MB",
      CALL_TIMEOUT: "30",
      DATABASE_URL: "mysql://db/auth",
      DATABASE_POOL_MAX: "0",
      DATABASE_TLS: "full",
      SECRET_PEPPERS: "pepper",
      SERVICE_TOKEN_TTL: "25h",
      LOG_LEVEL: "loud",
    };
    expect(faultyNames(broken).toSorted()).toEqual(Object.keys(broken).toSorted());
  });

  test.each([
    ["SECRET_PEPPERS", "1:hunter2hunter2hunter2"],
    ["SECRET_PEPPERS", `hunter2${PEPPER}`],
    ["SECRET_PEPPERS", `1:${PEPPER},1:hunter2${PEPPER}`],
    ["DATABASE_URL", "app:hunter2@db.internal/auth"],
    ["DATABASE_URL", "postgresql://app:hunter2@[db/auth"],
    ["DATABASE_URL", "postgresql://app:hunter2@db.internal/auth?sslmode=hunter2"],
    ["TLS_KEY_FILE", "-----BEGIN PRIVATE KEY-----hunter2"],
    ["DATABASE_TLS_CA_FILE", "hunter2"],
    ["NODE_ENV", "hunter2"],
    ["DATABASE_POOL_MAX", "hunter2"],
    ["DATABASE_STATEMENT_TIMEOUT", "hunter2"],
  ])("%s: a secret in a wrong place is never repeated: %s", (name, value) => {
    const faults = faultsOf({ [name]: value });
    expect(faults.join("\n")).toContain(name);
    expect(new ConfigError(faults).message).not.toContain("hunter2");
  });

  test.each([
    [{ TLS_CERT_FILE: "tls.crt" }, "TLS_CERT_FILE, TLS_KEY_FILE"],
    [{ TLS_KEY_FILE: "tls.key" }, "TLS_CERT_FILE, TLS_KEY_FILE"],
    [{ TLS_CLIENT_CA_FILE: "ca.crt" }, "TLS_CLIENT_CA_FILE"],
    [{ DATABASE_TLS_CA_FILE: "ca.crt" }, "DATABASE_TLS_CA_FILE"],
    [{ DATABASE_URL: "postgresql://db/auth?sslmode=verify-full" }, "DATABASE_URL"],
    [{ GRPC_PORT: "9000", HTTP_PORT: "9000" }, "HTTP_PORT"],
    [{ PASSWORD_HASH_MEMORY_KIB: "16", PASSWORD_HASH_PARALLELISM: "4" }, "PASSWORD_HASH_MEMORY_KIB"],
    [
      { PASSWORD_HASH_MEMORY_KIB: "65536", PASSWORD_HASH_PASSES: "17" },
      "PASSWORD_HASH_MEMORY_KIB, PASSWORD_HASH_PASSES",
    ],
    [{ SESSION_IDLE_TTL: "91d" }, "SESSION_IDLE_TTL"],
    [{ SMTP_URL: "smtp://mail.example" }, "SMTP_URL, MAIL_FROM"],
    [{ TWILIO_ACCOUNT_SID: "AC0", TWILIO_FROM: "+15005550006" }, "TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN"],
  ])("variables that do not go together: %o", (variables, name) => {
    expect(faultyNames(variables as Record<string, string>)).toEqual([name]);
  });

  test("of rules between variables are told together too", () => {
    const faults = faultyNames({ NODE_ENV: "production", TLS_CERT_FILE: "tls.crt", GRPC_PORT: "1", HTTP_PORT: "1" });
    expect(faults).toEqual([
      "TLS_CERT_FILE, TLS_KEY_FILE",
      "DATABASE_URL",
      "SECRET_PEPPERS",
      "JWT_KEYS_FILE",
      "HTTP_PORT",
    ]);
  });
});

test("what is broken and what does not go together are told at once, each once", () => {
  const faults = faultyNames({
    NODE_ENV: "production",
    GRPC_PORT: "fifty",
    HTTP_PORT: "50051",
    DATABASE_URL: "mysql://db/auth",
    TLS_CERT_FILE: "tls.crt",
  });
  expect(faults).toEqual([
    "GRPC_PORT",
    "DATABASE_URL",
    "TLS_CERT_FILE, TLS_KEY_FILE",
    "SECRET_PEPPERS",
    "JWT_KEYS_FILE",
  ]);
});

describe("values", () => {
  test("without any variable everything has its default, typed and in milliseconds", () => {
    expect(parseConfig({})).toMatchObject({
      production: false,
      callTimeoutMs: 30_000,
      grpc: { host: "0.0.0.0", port: 50051, reflection: true },
      http: { enabled: true, port: 8080, corsOrigins: [] },
      tls: undefined,
      database: { url: undefined, poolMax: 10, statementTimeoutMs: 5_000, tls: "url", pgBouncer: false },
      peppers: undefined,
      serviceTokenTtlMs: 3_600_000,
      accessTokens: { ttlMs: 600_000 },
      sessions: { idleTtlMs: 30 * DAY_MS, maxTtlMs: 90 * DAY_MS, refreshGraceMs: 10_000, knownNetworkMs: 90 * DAY_MS },
      passwords: { memoryKib: 19_456, passes: 2, parallelism: 1 },
      otp: { ttlMs: 300_000, attemptMax: 5, requestIntervalMs: 60_000, requestsPerHour: 5 },
      throttles: {
        enabled: true,
        windowMs: 600_000,
        identifierAddressMax: 10,
        identifierMax: 30,
        addressMax: 100,
        tenantMax: 5_000,
      },
      shutdown: { delayMs: 0, graceMs: 20_000 },
      tracing: false,
    });
  });

  test("are frozen through and through", () => {
    const config: Config = parseConfig({ CORS_ORIGINS: "https://a.example", SECRET_PEPPERS: `1:${PEPPER}` });
    const parts = [config, config.grpc, config.http, config.http.corsOrigins, config.database, config.peppers?.[0]];
    expect(parts.map((part) => Object.isFrozen(part))).toEqual(parts.map(() => true));
    // @ts-expect-error a configuration cannot be written to
    expect(() => (config.grpc.port = 1)).toThrow(TypeError);
  });

  test.each([
    ["250ms", 250],
    ["10s", 10_000],
    ["15m", 900_000],
    ["24h", 86_400_000],
    ["30d", 2_592_000_000],
  ])("%s is %d milliseconds", (text, milliseconds) => {
    expect(parseConfig({ SESSION_RETENTION: text }).purge.sessionRetentionMs).toBe(milliseconds);
  });

  test.each(["10", "1w", "-1s", "1.5s", "1 s", "1S", "s", "1h30m", "1e3s", "9999999999s"])(
    "%s is no duration",
    (text) => {
      expect(faultyNames({ SESSION_RETENTION: text })).toEqual(["SESSION_RETENTION"]);
    },
  );

  test("a duration that no timer can hold is refused where it becomes one", () => {
    expect(faultyNames({ CALL_TIMEOUT: "25d" })).toEqual(["CALL_TIMEOUT"]);
    expect(faultyNames({ CALL_TIMEOUT: "24d" })).toEqual([]);
  });

  test("DATABASE_STATEMENT_TIMEOUT=off is no limit", () => {
    expect(parseConfig({ DATABASE_STATEMENT_TIMEOUT: "off" }).database.statementTimeoutMs).toBeUndefined();
    expect(parseConfig({ DATABASE_STATEMENT_TIMEOUT: "250ms" }).database.statementTimeoutMs).toBe(250);
  });

  test("HTTP_PORT=0 turns HTTP off, also beside GRPC_PORT=0", () => {
    expect(parseConfig({ HTTP_PORT: "0", GRPC_PORT: "0" }).http.enabled).toBe(false);
  });

  test("an empty variable counts as one that is not set", () => {
    expect(parseConfig({ GRPC_PORT: "", DATABASE_URL: " ", TLS_CERT_FILE: "" })).toEqual(parseConfig({}));
  });

  test("CORS_ORIGINS is a list", () => {
    const { http } = parseConfig({ CORS_ORIGINS: "https://a.example, https://b.example," });
    expect(http.corsOrigins).toEqual(["https://a.example", "https://b.example"]);
  });

  test("SECRET_PEPPERS keeps its order: the last makes new hashes", () => {
    const { peppers } = parseConfig({ SECRET_PEPPERS: `2:${PEPPER}, 1:${PEPPER}` });
    expect(peppers?.map(({ version, key }) => [version, key.length])).toEqual([
      [2, 32],
      [1, 32],
    ]);
  });

  test.each([
    ["a key of 31 bytes", `1:${Buffer.alloc(31).toString("base64")}`],
    ["a version twice", `1:${PEPPER},1:${PEPPER}`],
    ["version 0", `0:${PEPPER}`],
    ["no version", PEPPER],
    ["an empty pair", `1:${PEPPER},`],
  ])("SECRET_PEPPERS with %s is refused", (_, text) => {
    expect(faultyNames({ SECRET_PEPPERS: text })).toEqual(["SECRET_PEPPERS"]);
  });

  test.each([
    [{ OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector:4318" }, true],
    [{ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "http://collector:4318/v1/traces" }, true],
    [{ OTEL_TRACES_EXPORTER: "console" }, true],
    [{ OTEL_TRACES_EXPORTER: "none", OTEL_EXPORTER_OTLP_ENDPOINT: "http://collector:4318" }, false],
    [{ OTEL_SDK_DISABLED: "TRUE", OTEL_TRACES_EXPORTER: "otlp" }, false],
  ])("tracing with %o: %s", (variables, on) => {
    expect(parseConfig(variables as Record<string, string>).tracing).toBe(on);
  });
});

describe("production", () => {
  test("needs a database, peppers and keys of its own", () => {
    expect(faultyNames({ NODE_ENV: "production" })).toEqual(["DATABASE_URL", "SECRET_PEPPERS", "JWT_KEYS_FILE"]);
    expect(parseConfig(PRODUCTION)).toMatchObject({ production: true, peppers: [{ version: 1 }] });
  });

  test("waits for balancers when it shuts down, unless told otherwise", () => {
    expect(parseConfig(PRODUCTION).shutdown.delayMs).toBe(5_000);
    expect(parseConfig({ ...PRODUCTION, SHUTDOWN_DELAY: "0s" }).shutdown.delayMs).toBe(0);
  });
});

describe("the process", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "auth-service-config-"));
  });
  afterAll(() => rm(folder, { recursive: true }));

  const start = (variables: Record<string, string>) =>
    new Promise<{ code: unknown; stdout: string; stderr: string }>((resolve) => {
      const env = { ...CHILD_ENV, ...variables };
      execFile(process.execPath, [MAIN], { cwd: folder, env, timeout: 20_000 }, (error, stdout, stderr) => {
        resolve({ code: error?.code, stdout, stderr });
      });
    });

  test("ends with 78 and every fault on stderr, the `.env` file's too", async () => {
    await writeFile(join(folder, ".env"), "GRPC_PORT=fifty\nLOG_LEVEL=loud\n");
    const { code, stdout, stderr } = await start({ DATABASE_URL: "app:hunter2@db/auth", LOG_LEVEL: "info" });
    expect(code).toBe(78);
    expect(stdout).toBe("");
    expect(stderr).toMatch(/^the configuration is not usable:\n/);
    expect(stderr).toContain("  GRPC_PORT: ");
    expect(stderr).toContain("  DATABASE_URL: ");
    expect(stderr, "the environment wins over .env").not.toContain("LOG_LEVEL");
    expect(stderr).not.toContain("hunter2");
    expect(stderr, "no stack").not.toMatch(/^\s+at /m);
  });

  test.each([
    [{ TLS_CERT_FILE: "no-such", TLS_KEY_FILE: "no-such" }, "TLS_CERT_FILE (no-such) cannot be read: ENOENT"],
    [
      { DATABASE_TLS: "verify", DATABASE_TLS_CA_FILE: "no-such" },
      "DATABASE_TLS_CA_FILE (no-such) cannot be read: ENOENT",
    ],
    [{ JWT_KEYS_FILE: "no-such" }, "JWT_KEYS_FILE (no-such) cannot be read: ENOENT"],
    [{ DATA_DIR: MAIN }, `DATA_DIR (${MAIN}) cannot be written to: EEXIST`],
  ])("ends with 78 where a file is of no use, by its variable's name: %o", async (variables, fault) => {
    await writeFile(join(folder, ".env"), "DATABASE_URL=postgresql://127.0.0.1:1/auth\n");
    const { code, stderr } = await start(variables);
    expect({ code, stderr }).toEqual({ code: 78, stderr: `the configuration is not usable:\n  ${fault}\n` });
  });
});
