import { spawn } from "node:child_process";
import { once } from "node:events";
import { open } from "node:fs/promises";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { sql } from "slonik";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { CHILD_ENV } from "../support/child-env.ts";
import { createDatabase, createEmptyDatabase } from "../support/database.ts";
import { runCommand } from "../support/run-command.ts";
import { type TestService, launchService } from "../support/service.ts";
import { SECRET_PEPPERS } from "../support/root.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

let database: Awaited<ReturnType<typeof createDatabase>>;
let service: TestService | undefined;

beforeAll(async () => {
  database = await createDatabase();
});
afterAll(async () => {
  await service?.stop();
  await database.drop();
});

const COMMAND = fileURLToPath(new URL("../../src/commands/bootstrap.ts", import.meta.url));
const PRODUCTION = { NODE_ENV: "production", SECRET_PEPPERS, JWT_KEYS_FILE: "not-read-by-commands.json" };

const bootstrapOn = (databaseUrl: string, ...args: readonly string[]) =>
  runCommand("bootstrap", args, { ...PRODUCTION, DATABASE_URL: databaseUrl });
const bootstrap = (...args: readonly string[]) => bootstrapOn(database.url, ...args);

test("on a database that is not migrated it says what to do", async () => {
  const empty = await createEmptyDatabase();
  onTestFinished(() => empty.drop());
  expect(await bootstrapOn(empty.url)).toEqual({
    code: 1,
    stdout: "",
    stderr: "the database is not migrated: run `npm run migrate`\n",
  });
});

// As most machines know localhost; that of a container may have one of them alone.
const TWO_ADDRESSES = `
  import dns from "node:dns";
  const found = [{ address: "::1", family: 6 }, { address: "127.0.0.1", family: 4 }];
  dns.lookup = (host, options, done) => process.nextTick(done, null, found);`;

test.each([
  ["one address", "", "connect ECONNREFUSED 127.0.0.1:1"],
  ["two addresses", `--import=data:text/javascript,${encodeURIComponent(TWO_ADDRESSES)}`, "ECONNREFUSED"],
])("where nobody listens at a name of %s it says so", async (_count, options, why) => {
  const env = {
    ...PRODUCTION,
    NODE_OPTIONS: options,
    DATABASE_URL: `postgresql://${options ? "localhost" : "127.0.0.1"}:1/auth`,
  };
  expect(await runCommand("bootstrap", [], env)).toMatchObject({ code: 1, stderr: `DATABASE_UNAVAILABLE: ${why}\n` });
});

test("an argument that it does not know ends it before it does anything", async () => {
  for (const argument of ["--recovr", "--help", "recover"]) {
    const { code, stdout, stderr } = await bootstrap(argument);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toContain(argument);
  }
  expect((await bootstrap("--recover")).stderr).toContain("no root service yet");
});

test.runIf(process.platform === "linux")("a secret that nobody can have got is told to be lost", async () => {
  const fresh = await createDatabase();
  onTestFinished(() => fresh.drop());
  const run = async (stdout: "ignore" | "pipe" | number, ...args: readonly string[]) => {
    const env = { ...CHILD_ENV, ...PRODUCTION, DATABASE_URL: fresh.url };
    const child = spawn(process.execPath, [COMMAND, ...args], { env, cwd: "/", stdio: ["ignore", stdout, "pipe"] });
    // A reader who has left.
    child.stdout?.destroy();
    const [stderr] = await Promise.all([text(child.stderr as Readable), once(child, "exit")]);
    return { code: child.exitCode, stderr };
  };
  const lost = (why: string) =>
    `stdout cannot be written to: ${why}; the secret is lost, \`npm run bootstrap -- --recover\` makes another\n`;
  const full = await open("/dev/full", "w");
  expect(await run("ignore")).toEqual({
    code: 1,
    stderr: "stdout is closed, or leads nowhere: the secret would be lost\n",
  });
  const first = await run(full.fd);
  await full.close();
  expect(first).toEqual({ code: 1, stderr: expect.stringContaining(lost("ENOSPC")) as string });
  expect(await run("pipe", "--recover")).toEqual({ code: 1, stderr: expect.stringContaining(lost("EPIPE")) as string });
});

test("a pepper that it makes is told, for only a server with the same accepts the secret", async () => {
  const fresh = await createDatabase();
  const folder = await temporaryFolder();
  onTestFinished(() => fresh.drop());
  const env = { NODE_ENV: "development", DATABASE_URL: fresh.url, DATA_DIR: folder };
  const { stdout, stderr } = await runCommand("bootstrap", [], env);
  expect(stdout).toMatch(/^sks_\S+\n$/);
  expect(stderr).toContain(join(folder, "secret.peppers"));
});

test("bootstrap makes root once, prints its secret alone on stdout, and --recover makes it usable again", async () => {
  const early = await bootstrap("--recover");
  expect(early).toMatchObject({ code: 1, stdout: "" });
  expect(early.stderr).toContain("no root service yet");

  const runs = await Promise.all([bootstrap(), bootstrap(), bootstrap()]);
  const made = runs.filter(({ code }) => code === 0);
  expect(made).toHaveLength(1);
  expect(made[0]?.stdout).toMatch(/^sks_[^\s]{89}\n$/);
  for (const { stdout, stderr } of runs.filter(({ code }) => code === 1)) {
    expect(stdout).toBe("");
    expect(stderr).toContain("exists already");
  }

  service = await launchService("grpc", { databaseUrl: database.url });
  const { services } = service.as(undefined);
  const first = { key: "root", secret: made[0]?.stdout.trim() ?? "" };
  expect((await services.authenticateService(first)).permissions).toEqual(["*"]);
  await service.pool.query(sql.type(z.object({}))`UPDATE services SET svc_state_code = 'disabled'`);
  await service.pool.query(sql.type(z.object({}))`DELETE FROM service_permissions`);

  const recovered = await bootstrap("--recover");
  expect(recovered.code).toBe(0);
  const { serviceToken, permissions } = await services.authenticateService({
    key: "root",
    secret: recovered.stdout.trim(),
  });
  expect(permissions).toEqual(["*"]);
  const { events } = await service.as(serviceToken).org.listAuditEvents({});
  expect(events.map(({ action }) => action)).toEqual([
    "service.secret.create",
    "service.permissions.grant",
    "service.enable",
    "service.register",
  ]);
  expect(events.every(({ actorServiceId }) => actorServiceId === undefined)).toBe(true);

  // A tenant's service of that name, as a bulk load may bring it, is no root.
  await service.pool.query(sql.type(z.object({}))`
    WITH tenant AS (
      INSERT INTO tenants (tenant_id, tenant_label, tenant_state_code) VALUES (gen_random_uuid(), 'Tenant', 'active')
      RETURNING tenant_id
    )
    UPDATE services SET tenant_id = tenant.tenant_id FROM tenant`);
  expect((await bootstrap("--recover")).stderr).toContain("no root service yet");
});
