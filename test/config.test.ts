import { readFile } from "node:fs/promises";
import { describe, expect, test } from "vitest";
import { type Config, parseConfig } from "../src/config.ts";
import { addressText } from "../src/config-values.ts";
import { environment } from "../src/environment.ts";
import { PEPPER, faultsOf, faultyNames } from "./support/config.ts";

const DAY_MS = 86_400_000;
const PRODUCTION = {
  NODE_ENV: "production",
  DATABASE_URL: "postgresql://app:app@db.internal/auth",
  SECRET_PEPPERS: `1:${PEPPER}`,
  JWT_KEYS_FILE: "/run/secrets/jwt-keys.json",
};

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

describe("values", () => {
  test("may be as large as they are said to be, to the millisecond", () => {
    const years = "315360000000ms";
    expect(parseConfig({ CALL_TIMEOUT: "2147483647ms" }).callTimeoutMs).toBe(2_147_483_647);
    expect(parseConfig({ SESSION_MAX_TTL: years }).sessions.maxTtlMs).toBe(3_650 * DAY_MS);
    expect(faultyNames({ CALL_TIMEOUT: "2147483648ms" })).toEqual(["CALL_TIMEOUT"]);
  });

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

  test.each(["postgres://db.internal/auth", "postgresql://app:50%25@db.internal:5433/auth"])(
    "%s is a database",
    (url) => {
      expect(parseConfig({ DATABASE_URL: url }).database.url).toBe(url);
    },
  );

  test("DATABASE_STATEMENT_TIMEOUT=off is no limit", () => {
    expect(parseConfig({ DATABASE_STATEMENT_TIMEOUT: "off" }).database.statementTimeoutMs).toBeUndefined();
    expect(parseConfig({ DATABASE_STATEMENT_TIMEOUT: "250ms" }).database.statementTimeoutMs).toBe(250);
  });

  test.each([
    ["0.0.0.0", "0.0.0.0:80"],
    ["auth.internal", "auth.internal:80"],
    ["::", "[::]:80"],
    ["[::1]", "[::1]:80"],
  ])("GRPC_HOST and HTTP_HOST take %s, which is listened to as %s", (name, address) => {
    const { grpc, http } = parseConfig({ GRPC_HOST: name, HTTP_HOST: name });
    expect([addressText(grpc.host, 80), addressText(http.host, 80)]).toEqual([address, address]);
    expect(http.host).not.toContain("[");
  });

  test("HTTP_PORT=0 turns HTTP off, also beside GRPC_PORT=0", () => {
    expect(parseConfig({ HTTP_PORT: "0", GRPC_PORT: "0" }).http.enabled).toBe(false);
  });

  test("an empty variable counts as one that is not set", () => {
    expect(parseConfig({ GRPC_PORT: "", DATABASE_URL: " ", TLS_CERT_FILE: "" })).toEqual(parseConfig({}));
  });

  test("CORS_ORIGINS is a list", () => {
    const { http } = parseConfig({ CORS_ORIGINS: "https://a.example, http://localhost:3000,,capacitor://localhost," });
    expect(http.corsOrigins).toEqual(["https://a.example", "http://localhost:3000", "capacitor://localhost"]);
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

test.each([
  ["user:hunter2@db/app?host=other&port=1&user=hunter2&password=hunter2", ["host", "port", "user", "password"]],
  ["/app?host=%2Frun%2Fpostgresql", []],
  ["app@%2Frun%2Fpostgresql:5432/app", []],
])("DATABASE_URL: a migration and the service have the same database: %s", (rest, names) => {
  expect(faultsOf({ DATABASE_URL: `postgresql://${rest}` })).toEqual(
    names.map((name) => `DATABASE_URL: ${name} must stand before the database's name, not behind a ?`),
  );
});

test.each([
  "/app?host=/run/postgresql&user=app",
  "app:hunter2@/app?host=/run/postgresql",
  ":5433/app",
  "app@:5433/app",
])("DATABASE_URL: a user or a port beside a socket's folder is told where that stands: %s", (rest) => {
  const faults = faultsOf({ DATABASE_URL: `postgresql://${rest}` });
  expect(faults).toEqual([expect.stringMatching(/^DATABASE_URL: .*a socket's folder.* postgresql:\/\/app@%2F/)]);
  expect(faults.join()).not.toContain("hunter2");
});
