import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "slonik";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { parseConfig } from "../../src/config.ts";
import { read } from "../../src/db/transact.ts";
import { endQueuePool, openQueuePool } from "../../src/delivery/queue-pool.ts";
import { createLog } from "../../src/log.ts";
import { detached } from "../../src/rpc/call.ts";
import { type Identity, makeAuthority, makeIdentity } from "../support/certificates.ts";
import { type TestDatabase, createDatabase } from "../support/database.ts";
import { openFor, pidOf, reasonOf } from "../support/open-database.ts";
import { runCommand } from "../support/run-command.ts";
import { SECRET_PEPPERS } from "../support/root.ts";
import { serve } from "../support/serve.ts";
import { startTlsDatabase } from "../support/tls-database.ts";

let database: TestDatabase;
let identity: Identity;
let otherIdentity: Identity;
let folder: string;
const caFile = (name: "ours" | "other") => join(folder, `${name}.crt`);

beforeAll(async () => {
  database = await createDatabase();
  folder = await mkdtemp(join(tmpdir(), "auth-service-tls-"));
  const [ours, other] = [await makeAuthority("ours"), await makeAuthority("other")];
  identity = await makeIdentity("localhost", ours);
  otherIdentity = await makeIdentity("localhost", other);
  await writeFile(caFile("ours"), ours.cert);
  await writeFile(caFile("other"), other.cert);
});
afterAll(async () => {
  await rm(folder, { recursive: true });
  await database.drop();
});

interface Case {
  readonly tls: "url" | "verify" | "off";
  readonly ca?: "ours" | "other";
  readonly sslmode?: string;
  readonly host?: "localhost" | "127.0.0.1";
  /** How it gets through; undefined where it does not. */
  readonly goes?: "encrypted" | "plain";
}

const cases: [string, Case][] = [
  ["verify takes a server that its authorities speak for", { tls: "verify", ca: "ours", goes: "encrypted" }],
  ["verify counts, whatever the URL says", { tls: "verify", ca: "ours", sslmode: "disable", goes: "encrypted" }],
  [
    "verify takes it where the URL asks for the same",
    { tls: "verify", ca: "ours", sslmode: "verify-full", goes: "encrypted" },
  ],
  ["verify refuses a server of another authority", { tls: "verify", ca: "other", sslmode: "no-verify" }],
  ["verify refuses, without a file, a server for whom nobody speaks whom Node trusts", { tls: "verify" }],
  ["verify refuses a server by another name than the certificate's", { tls: "verify", ca: "ours", host: "127.0.0.1" }],
  ["no-verify takes any server", { tls: "url", sslmode: "no-verify", goes: "encrypted" }],
  ["require refuses a server for whom nobody speaks whom Node trusts", { tls: "url", sslmode: "require" }],
  ["disable never encrypts", { tls: "url", sslmode: "disable", goes: "plain" }],
  ["off never encrypts, whatever the URL says", { tls: "off", sslmode: "require", goes: "plain" }],
];

const start = async ({ tls, ca, sslmode, host = "localhost" }: Case) => {
  const server = await startTlsDatabase(database.url, identity);
  const url = server.urlAt(host);
  if (sslmode !== undefined) url.searchParams.set("sslmode", sslmode);
  const variables = { DATABASE_TLS: tls, ...(ca && { DATABASE_TLS_CA_FILE: caFile(ca) }) };
  return { url: url.toString(), variables, begun: server.begun };
};

test.each(cases)("calls' connections: %s", async (_name, { goes, ...how }) => {
  const { url, variables, begun } = await start(how);
  const selectOne = sql.type(z.object({ one: z.number() }))`SELECT 1 AS one`;
  const reason = await reasonOf(read(openFor(url, variables), detached(), (c) => c.one(selectOne)));
  expect({ reason, begun }).toEqual(
    goes ? { reason: "answered", begun: [goes] } : { reason: "DATABASE_UNAVAILABLE", begun: [] },
  );
});

test.each(cases)("the delivery's connections: %s", async (_name, { goes, ...how }) => {
  const { url, variables, begun } = await start(how);
  const log = createLog("silent");
  const pool = openQueuePool({ databaseUrl: url, settings: parseConfig(variables).database, log, size: 1 });
  const answered = await pool.query("SELECT 1").then(
    () => true,
    () => false,
  );
  await endQueuePool(pool, log);
  expect({ answered, begun }).toEqual({ answered: goes !== undefined, begun: goes ? [goes] : [] });
});

test.each(cases)("a migration's connections: %s", async (_name, { goes, ...how }) => {
  const { url, variables, begun } = await start(how);
  const { code } = await runCommand("migrate", [], { ...variables, DATABASE_URL: url });
  expect({ code, begun: [...new Set(begun)] }).toEqual({ code: goes ? 0 : 1, begun: goes ? [goes] : [] });
});

test("a server whose database has a certificate of another authority is ready once the file has that", async () => {
  const { urlAt } = await startTlsDatabase(database.url, identity);
  const file = join(folder, "renewed.crt");
  await copyFile(caFile("other"), file);
  const variables = { DATABASE_TLS: "verify", DATABASE_TLS_CA_FILE: file };
  const server = await serve(urlAt("localhost").toString(), variables);
  onTestFinished(() => server.stop());
  expect(server.readiness()).toBe("database unavailable");
  await copyFile(caFile("ours"), file);
  await expect.poll(() => server.readiness()).toBe("ready");
});

test.each([
  ["holds no complete PEM certificate", "broken.crt"],
  ["cannot be read: ENOENT", "none.crt"],
])("commands name the variable of a file of authorities that %s, and end with 78", async (fault, name) => {
  await writeFile(join(folder, "broken.crt"), "-----BEGIN CERTIFICATE-----\n");
  const variables = {
    DATABASE_URL: database.url,
    DATABASE_TLS: "verify",
    DATABASE_TLS_CA_FILE: join(folder, name),
    SECRET_PEPPERS,
  };
  const stderr = `the configuration is not usable:\n  DATABASE_TLS_CA_FILE ${fault}\n`;
  for (const command of ["migrate", "bootstrap"])
    expect(await runCommand(command, [], variables)).toEqual({ code: 78, stdout: "", stderr });
});

const renewing = async () => {
  const server = await startTlsDatabase(database.url, identity);
  const file = join(folder, "renewing.crt");
  await copyFile(caFile("ours"), file);
  return {
    url: server.urlAt("localhost").toString(),
    variables: { DATABASE_TLS: "verify", DATABASE_TLS_CA_FILE: file },
    async renew() {
      server.renew(otherIdentity);
      await copyFile(caFile("other"), file);
    },
    cut: async () => writeFile(file, (await readFile(caFile("ours"), "utf8")).slice(0, 300)),
    leave: () => rm(file),
  };
};

test("a pool whose database has a certificate of another authority by now opens connections by that", async () => {
  const { url, variables, renew, cut, leave } = await renewing();
  const db = openFor(url, variables);
  const pids = (count: number) => Promise.all(Array.from({ length: count }, () => pidOf(db)));
  await pids(1);
  await renew();
  expect(new Set(await pids(3)).size).toBeGreaterThan(1);
  await cut();
  expect(new Set(await pids(4)).size).toBeGreaterThan(2);
  await leave();
  expect(new Set(await pids(6)).size).toBeGreaterThan(3);
});

test("the delivery's pool too", async () => {
  const { url, variables, renew } = await renewing();
  const log = createLog("silent");
  const pool = openQueuePool({ databaseUrl: url, settings: parseConfig(variables).database, log, size: 2 });
  onTestFinished(() => endQueuePool(pool, log));
  const former = await pool.connect();
  await renew();
  const next = await pool.connect();
  former.release();
  next.release();
});
