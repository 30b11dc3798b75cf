import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ConfigError } from "../src/config.ts";
import { CHILD_ENV } from "./support/child-env.ts";
import { PEPPER, faultsOf, faultyNames } from "./support/config.ts";

const MAIN = fileURLToPath(new URL("../src/main.ts", import.meta.url));

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
    ["DATABASE_URL", "postgresql://app:50%hunter2@db.internal/auth"],
    ["DATABASE_URL", "postgresql://app:50#hunter2@db.internal/auth"],
    ["SMTP_URL", "smtp://app:50%hunter2@mail.internal"],
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
    "*",
    "null",
    "https://*.example",
    "app.example",
    "https://app.example/",
    "https://app.example:443",
    "HTTPS://app.example",
  ])("CORS_ORIGINS: %j is no origin as browsers name them", (origin) => {
    const [fault, ...others] = faultsOf({ CORS_ORIGINS: `https://a.example,${origin}` });
    expect([fault, others]).toEqual([expect.stringMatching(/^CORS_ORIGINS: must be origins/), []]);
  });

  test.each(["ssl=true", "sslrootcert=/ca.pem", "sslcert=/our.crt", "sslkey=/our.key"])(
    "DATABASE_URL: what says ssl otherwise than by sslmode is refused, for nobody would heed it: %s",
    (said) => {
      const [name] = said.split("=");
      expect(faultsOf({ DATABASE_URL: `postgresql://app@db/app?${said}` })).toEqual([
        `DATABASE_URL: ${name} is not read; set sslmode, or DATABASE_TLS=verify`,
      ]);
    },
  );

  test("DATABASE_URL: a second sslmode is refused, of which one part of us would heed the first, another the last", () => {
    expect(faultsOf({ DATABASE_URL: "postgresql://app@db/app?sslmode=require&sslmode=disable" })).toEqual([
      "DATABASE_URL: sslmode stands there twice",
    ]);
    expect(faultyNames({ DATABASE_URL: "postgresql://app@db/app?sslmode=require&sslmode=verify-full" })).toContain(
      "DATABASE_URL",
    );
  });

  test("SMTP_URL that is no URL is said to be none", () => {
    expect(faultsOf({ SMTP_URL: "mail.example", MAIL_FROM: "a@example.org" })).toEqual([
      "SMTP_URL: must be a URL that begins with smtp:// or smtps://",
    ]);
  });

  test.each([
    "smtp://",
    "smtp://?requireTLS=true",
    "smtp://mail.example?requiretls=true",
    "smtp://mail.example?tls.rejectunauthorized=false",
    "smtp://mail.example?debug=true",
  ])("SMTP_URL: %j is no mail server's", (url) => {
    const [fault, ...others] = faultsOf({ SMTP_URL: url, MAIL_FROM: "a@example.org" });
    expect(fault).toMatch(/^SMTP_URL: must name a host, and no options but requireTLS/);
    expect(others).toEqual([]);
  });

  test.each(["ignoreTLS=no", "ignoreTLS=off", "opportunisticTLS=0", "requireTLS", "tls.rejectUnauthorized=False"])(
    "SMTP_URL: %j says neither yes nor no",
    (option) => {
      expect(faultsOf({ SMTP_URL: `smtp://mail.example?${option}`, MAIL_FROM: "a@example.org" })).toEqual([
        "SMTP_URL: must say true or false by its options on TLS",
      ]);
    },
  );

  test.each([
    "Example",
    "no-reply",
    "<>",
    "Example no-reply@example.org",
    "a@example.org, b@example.org",
    "Team: a@example.org;",
    "no-reply@bücher.example",
    "a@example.org\r\nBcc: b@example.org",
    "Example\r\nBcc: b <a@example.org>",
    `${"a".repeat(243)}@example.org`,
  ])("MAIL_FROM: %j is no sender", (from) => {
    expect(faultsOf({ SMTP_URL: "smtp://mail.example", MAIL_FROM: from })).toEqual([
      "MAIL_FROM: must be an e-mail address, such as Example <no-reply@example.org>",
    ]);
  });

  test.each([
    [{ TLS_CERT_FILE: "tls.crt" }, "TLS_CERT_FILE, TLS_KEY_FILE"],
    [{ TLS_KEY_FILE: "tls.key" }, "TLS_CERT_FILE, TLS_KEY_FILE"],
    [{ TLS_CLIENT_CA_FILE: "ca.crt" }, "TLS_CLIENT_CA_FILE"],
    [{ DATABASE_TLS_CA_FILE: "ca.crt" }, "DATABASE_TLS_CA_FILE"],
    [{ DATABASE_URL: "postgresql://db/auth?sslmode=verify-full" }, "DATABASE_URL"],
    [{ DATABASE_URL: "postgresql://db/auth?sslmode=prefer" }, "DATABASE_URL"],
    [{ GRPC_PORT: "9000", HTTP_PORT: "9000" }, "HTTP_PORT"],
    [{ PASSWORD_HASH_MEMORY_KIB: "16", PASSWORD_HASH_PARALLELISM: "4" }, "PASSWORD_HASH_MEMORY_KIB"],
    [
      { PASSWORD_HASH_MEMORY_KIB: "65536", PASSWORD_HASH_PASSES: "17" },
      "PASSWORD_HASH_MEMORY_KIB, PASSWORD_HASH_PASSES",
    ],
    [{ SESSION_IDLE_TTL: "91d" }, "SESSION_IDLE_TTL"],
    [{ SMTP_URL: "smtp://mail.example" }, "SMTP_URL, MAIL_FROM"],
    [{ TWILIO_ACCOUNT_SID: "AC0", TWILIO_FROM: "+15005550006" }, "TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN"],
    [{ TWILIO_WHATSAPP_FROM: "+15005550006" }, "TWILIO_FROM, TWILIO_WHATSAPP_FROM"],
    [{ TWILIO_ACCOUNT_SID: "AC0", TWILIO_AUTH_TOKEN: "token" }, "TWILIO_FROM, TWILIO_WHATSAPP_FROM"],
  ])("variables that do not go together: %o", (variables, name) => {
    expect(faultyNames(variables as Record<string, string>)).toEqual([name]);
  });

  test.each([
    { SESSION_IDLE_TTL: "90d", SESSION_MAX_TTL: "90d" },
    { DATABASE_URL: "postgresql://db/auth?sslmode=verify-full", DATABASE_TLS: "verify" },
  ])("variables that go together: %o", (variables) => {
    expect(faultyNames(variables as Record<string, string>)).toEqual([]);
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

describe("the process", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "auth-service-config-"));
  });
  afterAll(() => rm(folder, { recursive: true }));

  const start = (variables: Record<string, string>, cwd = folder) =>
    new Promise<{ code: unknown; stdout: string; stderr: string }>((resolve) => {
      const env = { ...CHILD_ENV, ...variables };
      execFile(process.execPath, [MAIN], { cwd, env, timeout: 20_000 }, (error, stdout, stderr) => {
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

  test("ends with 78 where its `.env` is there and cannot be read", async () => {
    const cwd = join(folder, "unreadable");
    await mkdir(join(cwd, ".env"), { recursive: true });
    const stderr = "the configuration is not usable:\n  .env: cannot be read\n";
    expect(await start({ DATABASE_URL: "postgresql://127.0.0.1:1/auth" }, cwd)).toEqual({
      code: 78,
      stdout: "",
      stderr,
    });
  });

  test.each([
    ["a byte order mark", Buffer.from("\uFEFFDATABASE_URL=postgresql://127.0.0.1:1/auth\n")],
    ["UTF-16", Buffer.from("\uFEFFDATABASE_URL=postgresql://127.0.0.1:1/auth\n", "utf16le")],
  ])("ends with 78 where its `.env` has %s, for which a variable of it would not be set", async (_what, bytes) => {
    const cwd = join(folder, "marked");
    await mkdir(cwd, { recursive: true });
    await writeFile(join(cwd, ".env"), bytes);
    const stderr = "the configuration is not usable:\n  .env: must be UTF-8 without a byte order mark\n";
    expect(await start({ DATA_DIR: MAIN }, cwd)).toEqual({ code: 78, stdout: "", stderr });
  });

  test.each([
    [
      { TLS_CERT_FILE: "no-such", TLS_KEY_FILE: "no-such" },
      "TLS_CERT_FILE cannot be read: ENOENT\n  TLS_KEY_FILE cannot be read: ENOENT",
    ],
    [{ DATABASE_TLS: "verify", DATABASE_TLS_CA_FILE: "no-such" }, "DATABASE_TLS_CA_FILE cannot be read: ENOENT"],
    [{ JWT_KEYS_FILE: "no-such" }, "JWT_KEYS_FILE cannot be read: ENOENT"],
    [{ JWT_KEYS_FILE: '{"keys":[{"d":"hunter2"}]}' }, "JWT_KEYS_FILE cannot be read: ENOENT"],
    [{ TLS_CERT_FILE: MAIN, TLS_KEY_FILE: "-----BEGIN KEY-----hunter2" }, "TLS_KEY_FILE cannot be read: ENOENT"],
    [{ DATA_DIR: MAIN }, `DATA_DIR cannot be written to: EEXIST`],
    [
      { TLS_CERT_FILE: "no-such", TLS_KEY_FILE: "no-such", JWT_KEYS_FILE: "no-such" },
      ["TLS_CERT_FILE", "TLS_KEY_FILE", "JWT_KEYS_FILE"].map((name) => `${name} cannot be read: ENOENT`).join("\n  "),
    ],
  ])("ends with 78 where a file is of no use, by its variable's name: %o", async (variables, fault) => {
    await writeFile(join(folder, ".env"), "DATABASE_URL=postgresql://127.0.0.1:1/auth\n");
    const { code, stderr } = await start(variables);
    expect({ code, stderr }).toEqual({ code: 78, stderr: `the configuration is not usable:\n  ${fault}\n` });
  });

  test("ends with 78 where development's own keys are broken, and blames no variable that nobody has set", async () => {
    const file = join(folder, "jwt-keys.json");
    await writeFile(file, "{");
    const { code, stderr } = await start({ DATABASE_URL: "postgresql://127.0.0.1:1/auth", DATA_DIR: folder });
    expect({ code, stderr }).toEqual({ code: 78, stderr: `the configuration is not usable:\n  ${file} is not JSON\n` });
  });

  test.runIf(process.platform === "linux")("ends with 78 also where nobody can be told why", async () => {
    const full = await open("/dev/full", "w");
    const child = spawn(process.execPath, [MAIN], {
      cwd: folder,
      env: { ...CHILD_ENV, GRPC_PORT: "fifty" },
      stdio: ["ignore", "ignore", full.fd],
    });
    expect(await once(child, "exit")).toEqual([78, null]);
    await full.close();
  });

  test("ends with 78 where files are pipes that nobody writes to, and does not wait for that", async () => {
    const pipe = join(folder, "pipe");
    await promisify(execFile)("mkfifo", [pipe]);
    const { code, stderr } = await start({
      DATABASE_URL: "postgresql://127.0.0.1:1/auth",
      DATABASE_TLS: "verify",
      DATABASE_TLS_CA_FILE: pipe,
      TLS_CERT_FILE: pipe,
      TLS_KEY_FILE: pipe,
      JWT_KEYS_FILE: pipe,
    });
    const faults = [
      "TLS_CERT_FILE holds no complete PEM certificate",
      "JWT_KEYS_FILE is not JSON",
      "DATABASE_TLS_CA_FILE must be a file, and no pipe",
    ];
    expect({ code, stderr }).toEqual({
      code: 78,
      stderr: `the configuration is not usable:\n  ${faults.join("\n  ")}\n`,
    });
  });
});
