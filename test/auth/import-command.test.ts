import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { createWriteStream } from "node:fs";
import { readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { expect, onTestFinished, test, vi } from "vitest";
import { type DatabaseProxy, startDatabaseProxy } from "../support/database-proxy.ts";
import { createDatabase } from "../support/database.ts";
import {
  type Environment,
  importer,
  people,
  reportOf,
  runImport,
  startImport,
  writeLines,
} from "../support/import-command.ts";
import { productionEnv } from "../support/production.ts";
import { NOBODY_LISTENS } from "../support/ports.ts";
import { startSilentServer } from "../support/silent-server.ts";
import { type TestService, launchService, startService } from "../support/service.ts";
import { countUsers } from "../support/users.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

test("a run that fails at once leaves the former report, and says to repeat it where that may help", async () => {
  const server = await startService("grpc");
  const file = await writeLines([{ email: "ann@example.com" }]);
  await writeFile(`${file}.report`, "former\n");
  const { code, stderr } = await runImport([file, "--tenant", randomUUID()], server, await importer(server));
  expect(code).toBe(1);
  expect(stderr).toMatch(/TENANT_NOT_FOUND.*; what was imported stands\n$/);
  expect(await readFile(`${file}.report`, "utf8")).toBe("former\n");
});

test("a file without people takes the former report's place", async () => {
  const server = await startService("grpc");
  const file = await writeLines(["", " "]);
  await writeFile(`${file}.report`, "former\n");
  const { code, stdout } = await runImport([file, "--tenant", randomUUID()], server, await importer(server));
  expect([code, stdout]).toEqual([0, expect.stringMatching(/^0 created, 0 unchanged, 0 refused;/)]);
  expect(await readFile(`${file}.report`, "utf8")).toBe("");
});

test.runIf(process.platform === "linux")(
  "a report that cannot be written is named, and the run may be repeated",
  async () => {
    const server = await startService("grpc");
    const tenantId = await server.addTenant();
    const file = await writeLines(people(1));
    await symlink("/dev/full", `${file}.report`);
    const args = [file, "--tenant", tenantId];
    const env = await importer(server);
    const { code, stdout, stderr } = await runImport(args, server, env);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(/people\.ndjson\.report cannot be written: E\w+; what was imported stands: run it again\n$/);
    await rm(`${file}.report`);
    expect((await runImport(args, server, env)).stdout).toMatch(/^0 created, 1 unchanged/);
  },
);

/** A file that is fed while it is read. */
const fedFile = async () => {
  const pipe = join(await temporaryFolder(), "people.ndjson");
  await promisify(execFile)("mkfifo", [pipe]);
  return pipe;
};

test("a pipe that nobody writes to is waited for until a signal comes", async () => {
  const { child, finished } = startImport(
    [await fedFile(), "--tenant", randomUUID()],
    { grpcPort: NOBODY_LISTENS },
    {},
  );
  // Nothing tells that the opening has begun.
  await sleep(2_000);
  child.kill("SIGTERM");
  await finished;
  expect(child.signalCode).toBe("SIGTERM");
});

const metricsOf = async ({ httpPort }: TestService) => (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text();

test("what is refused while the file is still read is told in one line too", async () => {
  const server = await startService("grpc");
  const pipe = await fedFile();
  const refused = /grpc_server_handled_total\{[^}]*grpc_method="ImportUsers"[^}]*grpc_code="NotFound"[^}]*\} (\d+)/;
  const refusals = async () => Number(refused.exec(await metricsOf(server))?.[1] ?? 0);
  const before = await refusals();
  const { finished } = startImport([pipe, "--tenant", randomUUID()], server, await importer(server));
  const feed = createWriteStream(pipe);
  feed.write(
    people(1_500)
      .map((person) => `${JSON.stringify(person)}\n`)
      .join(""),
  );
  await vi.waitFor(async () => expect(await refusals()).toBeGreaterThan(before), { timeout: 20_000 });
  feed.end();
  const stderr = expect.stringMatching(/^the server refused: TENANT_NOT_FOUND.*\n$/) as string;
  expect(await finished).toEqual({ code: 1, stdout: "", stderr });
});

test("a file of several batches is imported whole, and repeated it writes nothing", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const file = await writeLines(people(2_321));
  const env = await importer(server);
  const args = ["--tenant", tenantId, file];
  const counted = (summary: string) => ({ code: 0, stdout: `${summary}; each line: ${file}.report\n`, stderr: "" });
  expect(await runImport(args, server, env)).toEqual(counted("2321 created, 0 unchanged, 0 refused"));
  const report = await reportOf(file);
  expect(report.map(({ line }) => line)).toEqual(people(2_321).map((_, n) => n + 1));
  expect(await countUsers(server, tenantId)).toBe(2_321);
  expect(await runImport(args, server, env)).toEqual(counted("0 created, 2321 unchanged, 0 refused"));
  expect((await reportOf(file)).map(({ user_id }) => user_id)).toEqual(report.map(({ user_id }) => user_id));
});

test("stopped, it reports what it sent, and repeated it does the rest", { timeout: 60_000 }, async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const lines = people(1_500).map((person) => `${JSON.stringify(person)}\n`);
  const pipe = await fedFile();
  const env = await importer(server);
  const { child, out, finished } = startImport([pipe, "--tenant", tenantId], server, env);
  const feed = createWriteStream(pipe);
  feed.write(lines.join(""));
  await vi.waitFor(async () => expect(await countUsers(server, tenantId)).toBe(1_000), { timeout: 20_000 });
  // As npm and the terminal do: twice.
  child.kill("SIGINT");
  child.kill("SIGINT");
  const stderr = "stopping: what was sent is still reported\n";
  // Before the end of the file, which would complete a batch that may still be sent.
  await vi.waitFor(() => expect(out.stderr).toBe(stderr), { timeout: 20_000 });
  child.kill("SIGINT");
  feed.end(lines.slice(0, 1).join(""));
  expect(await finished).toEqual({
    code: 1,
    stdout: `stopped: 1000 created, 0 unchanged, 0 refused; each line: ${pipe}.report\n`,
    stderr,
  });
  expect(await reportOf(pipe)).toHaveLength(1_000);
  const file = await writeLines(people(1_500));
  expect((await runImport([file, "--tenant", tenantId], server, env)).stdout).toMatch(/^500 created, 1000 unchanged/);
});

test("a second signal ends it at once, though the server says nothing", { timeout: 30_000 }, async () => {
  const { port, sockets } = await startSilentServer();
  const file = await writeLines(people(1));
  const env = { SERVICE_TOKEN: "of a service" };
  const { child, out, finished } = startImport([file, "--tenant", randomUUID()], { grpcPort: port }, env);
  await vi.waitFor(() => expect(sockets).toHaveLength(1), { timeout: 20_000 });
  child.kill("SIGINT");
  await vi.waitFor(() => expect(out.stderr).toContain("stopping"), { timeout: 20_000 });
  // Later than what npm and the terminal deliver twice.
  await sleep(1_100);
  child.kill("SIGTERM");
  expect(await finished).toMatchObject({ code: 143 });
});

/** A server whose database can be taken away. */
const launchWithProxy = async (): Promise<{ server: TestService; proxy: DatabaseProxy }> => {
  const database = await createDatabase();
  const proxy = await startDatabaseProxy(database.url);
  const server = await launchService("grpc", { databaseUrl: proxy.url });
  onTestFinished(async () => {
    await server.stop();
    await proxy.close();
    await database.drop();
  });
  return { server, proxy };
};

test("it tries again while the database is away", { timeout: 30_000 }, async () => {
  const { server, proxy } = await launchWithProxy();
  const tenantId = await server.addTenant();
  const env = await importer(server);
  const file = await writeLines(people(10));
  await proxy.refuse();
  const { finished } = startImport([file, "--tenant", tenantId], server, env);
  const unavailable =
    /grpc_server_handled_total\{[^}]*grpc_method="ImportUsers"[^}]*grpc_code="Unavailable"[^}]*\} [1-9]/;
  await vi.waitFor(
    async () => {
      expect(await metricsOf(server)).toMatch(unavailable);
    },
    { timeout: 10_000 },
  );
  await proxy.pass();
  expect(await finished).toMatchObject({ code: 0, stdout: expect.stringMatching(/^10 created/) as string });
});

test("in development it uses root's secret", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const file = await writeLines(people(1));
  const DATA_DIR = await temporaryFolder();
  const args = [file, "--tenant", tenantId];
  const without = await runImport(args, server, { DATA_DIR });
  expect(without).toMatchObject({ code: 1, stderr: expect.stringContaining("root.secret cannot be read") as string });
  await writeFile(join(DATA_DIR, "root.secret"), `${server.rootSecret}\n`);
  expect((await runImport(args, server, { DATA_DIR })).stdout).toMatch(/^1 created/);
});

test("what is wrong with the whole is one line on stderr", { timeout: 60_000 }, async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const env = await importer(server);
  const file = await writeLines(people(1));
  const { token } = await server.addService(["auth.user.read"]);
  const failing = async (args: readonly string[], message: RegExp, variables: Environment = env) => {
    const { code, stdout, stderr } = await runImport(args, server, variables);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(message);
    expect(stderr.trimEnd()).not.toContain("\n");
  };
  const args = [file, "--tenant", tenantId];
  await Promise.all([
    failing([file], /^which file, and into which tenant\?/),
    failing([file, ...args], /^which file, and into which tenant\?/),
    failing([`${file}.gone`, "--tenant", tenantId], /people\.ndjson\.gone cannot be opened: ENOENT/),
    failing([tmpdir(), "--tenant", tenantId], /cannot be opened: EISDIR/),
    failing(["/dev/stdin", "--tenant", tenantId], /^beside \/dev\/stdin no report can stand/),
    failing([file, "--tenant", "acme"], /^the server refused: INVALID_REQUEST/),
    failing([file, "--tenant", randomUUID()], /^the server refused: TENANT_NOT_FOUND/),
    failing(args, /^the server refused: PERMISSION_MISSING/, { SERVICE_TOKEN: token }),
    failing(args, /^SERVICE_TOKEN is not set/, productionEnv()),
  ]);
});

test("where no server listens it says so, and the former report stays", async () => {
  const file = await writeLines(people(1));
  const DATA_DIR = await temporaryFolder();
  await writeFile(join(DATA_DIR, "root.secret"), "secret\n");
  await writeFile(`${file}.report`, "former\n");
  const args = [file, "--tenant", randomUUID()];
  const { code, stderr } = await runImport(args, { grpcPort: NOBODY_LISTENS }, { DATA_DIR });
  expect({ code, stderr }).toEqual({ code: 1, stderr: expect.stringMatching(/^the server is out of reach/) as string });
  expect(await readFile(`${file}.report`, "utf8")).toBe("former\n");
});

test("--help says how it is used", async () => {
  const { code, stdout } = await runImport(["--help"], { grpcPort: NOBODY_LISTENS }, {});
  expect(code).toBe(0);
  expect(stdout).toContain("SERVICE_TOKEN");
});
