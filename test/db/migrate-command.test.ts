import { spawn } from "node:child_process";
import { appendFile, cp, symlink } from "node:fs/promises";
import { join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { sql } from "slonik";
import { expect, inject, onTestFinished, test, vi } from "vitest";
import { migrate, migrationUrl } from "../../src/commands/migrate.ts";
import { parseConfig } from "../../src/config.ts";
import { QUEUE_STEP, committedMigrations } from "../../src/db/migrations.ts";
import { administer, databaseUrl, withPool } from "../support/admin.ts";
import { CHILD_ENV } from "../support/child-env.ts";
import { createDatabase, createEmptyDatabase } from "../support/database.ts";
import { untilSomebodyWaits } from "../support/lock-waiters.ts";
import { NOBODY_LISTENS } from "../support/ports.ts";
import { runCommand } from "../support/run-command.ts";
import { startSilentServer } from "../support/silent-server.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const count = committedMigrations().length;

const runMigrate = (url: string | undefined, variables: Readonly<Record<string, string>> = {}) =>
  runCommand("migrate", [], { ...variables, ...(url !== undefined && { DATABASE_URL: url }) });

const emptyDatabase = async () => {
  const database = await createEmptyDatabase();
  onTestFinished(() => database.drop());
  return database.url;
};

test("an empty database is migrated once, and again there is nothing to do", async () => {
  const url = await emptyDatabase();
  expect(await runMigrate(url)).toEqual({
    code: 0,
    stdout: `applied ${count} migrations: ${committedMigrations().join(", ")}; took ${QUEUE_STEP} steps to the delivery queue's schema\n`,
    stderr: "",
  });
  expect(await runMigrate(url)).toEqual({
    code: 0,
    stdout: `nothing to do: ${count} migrations already applied\n`,
    stderr: "",
  });
});

test("eight at once all succeed, and each migration is applied by one of them", async () => {
  const url = await emptyDatabase();
  const results = await Promise.all(Array.from({ length: 8 }, () => migrate(url)));
  expect(results.flatMap(({ applied }) => applied).sort()).toEqual(committedMigrations());
  expect(results.reduce((sum, { queueSteps }) => sum + queueSteps, 0)).toBe(QUEUE_STEP);
});

test("a database that cannot hold every text is refused before anything is done", async () => {
  const name = `test_latin_${process.pid}`;
  await administer(
    inject("postgresUrl"),
    sql.unsafe`CREATE DATABASE ${sql.identifier([name])} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'`,
  );
  onTestFinished(async () => {
    await administer(inject("postgresUrl"), sql.unsafe`DROP DATABASE ${sql.identifier([name])}`);
  });
  expect(await runMigrate(databaseUrl(inject("postgresUrl"), name))).toEqual({
    code: 1,
    stdout: "",
    stderr: "cannot migrate: the database's encoding is LATIN1, and must be UTF8\n",
  });
});

test("PGSSLMODE is no more heeded than by the server, and PGPORT no less", async () => {
  const url = new URL(await emptyDatabase());
  const variables = { PGSSLMODE: "require", PGPORT: url.port };
  url.port = "";
  expect(await runMigrate(url.toString(), variables)).toMatchObject({ code: 0, stderr: "" });
});

test("TLS that must verify refuses a server without it", async () => {
  const { code, stderr } = await runMigrate(inject("postgresUrl"), { DATABASE_TLS: "verify" });
  expect({ code, stderr }).toEqual({
    code: 1,
    stderr: "cannot migrate: The server does not support SSL connections\n",
  });
});

test.each([
  [{ DATABASE_TLS: "off" }, "?sslmode=require", "sslmode=disable"],
  [{ DATABASE_TLS: "verify" }, "?sslmode=disable", "sslmode=verify-full"],
  [{ DATABASE_TLS: "verify", DATABASE_TLS_CA_FILE: "/ca.crt" }, "", "sslmode=verify-full&sslrootcert=%2Fca.crt"],
  [{}, "?sslmode=require", "sslmode=verify-full"],
  [{}, "?sslmode=no-verify", "sslmode=no-verify"],
  [{}, "", "sslmode=disable"],
])("what %o and a URL with %j say of TLS is what a migration's URL says", (variables, query, said) => {
  const DATABASE_URL = `postgresql://db.internal/auth${query}`;
  const { database } = parseConfig({ DATABASE_URL, ...variables });
  expect(new URL(migrationUrl(DATABASE_URL, database)).searchParams.toString()).toBe(said);
});

test("a database that does not exist is named", async () => {
  const result = await runMigrate(databaseUrl(inject("postgresUrl"), "no_such_database"));
  expect(result).toEqual({
    code: 1,
    stdout: "",
    stderr: 'cannot migrate: database "no_such_database" does not exist\n',
  });
});

test("a wrong password is said, and no password is", async () => {
  const database = await createDatabase();
  onTestFinished(() => database.drop());
  const url = new URL(database.url);
  url.password = "not-the-password";
  expect(await runMigrate(url.toString())).toEqual({
    code: 1,
    stdout: "",
    stderr: 'cannot migrate: password authentication failed for user "postgres"\n',
  });
});

test("a host that does not answer is named without the password", async () => {
  expect(await runMigrate(`postgresql://somebody:not-the-password@127.0.0.1:${NOBODY_LISTENS}/auth`)).toEqual({
    code: 1,
    stdout: "",
    stderr: `cannot migrate: the database at 127.0.0.1:${NOBODY_LISTENS} is out of reach: ECONNREFUSED\n`,
  });
});

test.each(["/auth?host=%2Fnone", "somebody@%2Fnone/auth"])("a socket is looked for in its folder: %s", async (url) => {
  const { code, stderr } = await runMigrate(`postgresql://${url}`);
  expect({ code, stderr }).toEqual({ code: 1, stderr: "cannot migrate: connect ENOENT /none/.s.PGSQL.5432\n" });
});

test("a database that takes the connection and says nothing is not waited for", { timeout: 30_000 }, async () => {
  const { port } = await startSilentServer();
  expect(await runMigrate(`postgresql://somebody:not-the-password@127.0.0.1:${port}/auth`)).toEqual({
    code: 1,
    stdout: "",
    stderr: `cannot migrate: the database at 127.0.0.1:${port} is out of reach: no answer within 10000 ms\n`,
  });
});

test("whoever is killed while it waits for the database leaves no process that goes on", async () => {
  const { port, sockets } = await startSilentServer();
  const env = { ...CHILD_ENV, DATABASE_URL: `postgresql://somebody@127.0.0.1:${port}/auth` };
  const command = fileURLToPath(new URL("../../src/commands/migrate.ts", import.meta.url));
  const child = spawn(process.execPath, [command], { env, cwd: "/", stdio: "ignore" });
  onTestFinished(() => void child.kill("SIGKILL"));
  // Of the look whether it is there, and of the connection.
  await vi.waitFor(() => expect(sockets).toHaveLength(2), { timeout: 20_000 });
  child.kill("SIGKILL");
  await vi.waitFor(() => expect(sockets.every(({ closed }) => closed)).toBe(true), { timeout: 3_000 });
});

test("a host that is named by its address is looked for at it, and told apart from its port", async () => {
  const { code, stderr } = await runMigrate(`postgresql://somebody@[::1]:${NOBODY_LISTENS}/auth`);
  expect(code).toBe(1);
  // The latter two where a machine has no such addresses.
  const reasons = "(ECONNREFUSED|EADDRNOTAVAIL|EAFNOSUPPORT)";
  expect(stderr).toMatch(
    new RegExp(`^cannot migrate: the database at \\[::1\\]:${NOBODY_LISTENS} is out of reach: ${reasons}\n$`),
  );
});

test("a migration that fails is named", async () => {
  const url = await emptyDatabase();
  await administer(url, sql.unsafe`CREATE TABLE tenants ()`);
  expect(await runMigrate(url)).toEqual({
    code: 1,
    stdout: "",
    stderr: `cannot migrate: ${committedMigrations()[0]}: relation "tenants" already exists\n`,
  });
});

test("a migration that was edited once it was committed is named, and not the one that has run before it", async () => {
  const folder = await temporaryFolder();
  for (const name of ["migrations", "package.json", "src"]) await cp(name, join(folder, name), { recursive: true });
  await symlink(resolve("node_modules"), join(folder, "node_modules"));
  const edited = committedMigrations()[1]!;
  await appendFile(join(folder, "migrations/committed", edited), "-- as an afterthought\n");
  const url = { DATABASE_URL: await emptyDatabase() };
  const { code, stderr } = await runCommand("migrate", [], url, pathToFileURL(`${folder}/`));
  expect(code).toBe(1);
  expect(stderr).toMatch(new RegExp(`^cannot migrate: Hash for ${edited} does not match .*\n$`));
});

test("a connection that is lost during a migration is told of in one line", async () => {
  const url = await emptyDatabase();
  const { command } = await withPool(url, (pool) =>
    pool.transaction(async (tx) => {
      await tx.query(sql.unsafe`CREATE SCHEMA graphile_migrate`);
      const waiting = runMigrate(url);
      await untilSomebodyWaits(tx);
      await tx.query(sql.unsafe`
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()`);
      return { command: waiting };
    }),
  );
  const { code, stdout, stderr } = await command;
  expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
  expect(stderr).toMatch(/^cannot migrate: .*terminat.*\n$/);
});

test("without a database it says which variable is missing", async () => {
  const { code, stdout, stderr } = await runMigrate(undefined);
  expect(code).not.toBe(0);
  expect(stdout).toBe("");
  expect(stderr).toContain("DATABASE_URL");
});
