import { execFile, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createWriteStream, existsSync, readFileSync } from "node:fs";
import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, onTestFinished, test, vi } from "vitest";
import { type DatabaseProxy, startDatabaseProxy } from "../support/database-proxy.ts";
import { createDatabase } from "../support/database.ts";
import { type TestService, launchService, startService } from "../support/service.ts";
import { countUsers } from "../support/users.ts";

const COMMAND = fileURLToPath(new URL("../../src/commands/import.ts", import.meta.url));
const NOBODY_LISTENS = 1;

type Environment = Readonly<Record<string, string>>;

/** The command in a process of its own, away from the checkout, whose .env could name another server. */
const startImport = (args: readonly string[], { grpcPort }: Pick<TestService, "grpcPort">, env: Environment) => {
  const child = spawn(process.execPath, [COMMAND, ...args], {
    cwd: "/",
    env: { PATH: process.env["PATH"], GRPC_HOST: "127.0.0.1", GRPC_PORT: String(grpcPort), ...env },
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  const out = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (text: string) => (out.stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (out.stderr += text));
  const finished = once(child, "close").then(([code]) => ({ code: code as number, ...out }));
  return { child, out, finished };
};

const runImport = (args: readonly string[], server: Pick<TestService, "grpcPort">, env: Environment) =>
  startImport(args, server, env).finished;

const temporaryFolder = async () => {
  const folder = await mkdtemp(join(tmpdir(), "auth-import-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  return folder;
};

const writeLines = async (lines: readonly (string | object)[]) => {
  const file = join(await temporaryFolder(), "people.ndjson");
  await writeFile(file, lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join(""));
  return file;
};

const reportOf = async (file: string) => {
  const text = await readFile(`${file}.report`, "utf8");
  return text
    .trimEnd()
    .split("\n")
    .map(
      (line) =>
        JSON.parse(line) as { line: number; user_id?: string; status: string; reason?: string; detail?: string },
    );
};

const people = (count: number) =>
  Array.from({ length: count }, (_, n) => ({ email: `person${n}@example.com`, display_name: `Person ${n}` }));

const importer = async (server: TestService) => {
  const { token } = await server.addService(["auth.user.import"]);
  return { SERVICE_TOKEN: token };
};

test("a line ends at a line feed alone, and what is no UTF-8, or too large by itself, is refused by its line", async () => {
  const server = await launchService("grpc", { env: { MESSAGE_MAX_BYTES: "2048" } });
  const tenantId = await server.addTenant();
  const names = ["Smith\u2028Co", "Jones\u2029Co", "x".repeat(190)];
  const file = await writeLines([
    ...names.map((name, n) => ({ email: `line${n}@example.com`, display_name: name })),
    ...Array.from({ length: 60 }, (_, n) => ({ email: `person${n}@example.com`, display_name: "y".repeat(190) })),
    { email: "large@example.com", password_hash: "\u{1f600}".repeat(1_000) },
  ]);
  const text = await readFile(file);
  const latin = Buffer.from('{"email":"latin@example.com","display_name":"M\xfcller"}', "latin1");
  await writeFile(file, Buffer.concat([Buffer.from("\ufeff"), text, latin]));
  const env = { ...(await importer(server)), MESSAGE_MAX_BYTES: "2048" };
  const { code, stdout } = await runImport([file, "--tenant", tenantId], server, env);
  expect([code, stdout]).toEqual([1, expect.stringContaining("63 created")]);
  const report = await reportOf(file);
  expect(report.map(({ line }) => line)).toEqual(Array.from({ length: 65 }, (_, n) => n + 1));
  expect(report.slice(63).map(({ detail }) => detail)).toEqual([
    "larger than MESSAGE_MAX_BYTES lets through",
    "no UTF-8",
  ]);
  const { users } = await server.auth.listUsers({ tenantId, prefix: "line" });
  expect(users.map(({ displayName }) => displayName)).toEqual(names);
  await server.stop();
});

test("a line that is too long for any person is refused by its line, and not held in memory", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const file = await writeLines([{ email: "before@example.com" }]);
  const more = createWriteStream(file, { flags: "a" });
  for (let n = 0; n < 300; n++) if (!more.write("x".repeat(1_048_576))) await once(more, "drain");
  more.end('\n{"email":"after@example.com"}\n');
  await once(more, "close");
  const { child, finished } = startImport([file, "--tenant", tenantId], server, await importer(server));
  let peakKib = 0;
  const watch = setInterval(() => {
    const status = existsSync(`/proc/${child.pid}/status`) ? readFileSync(`/proc/${child.pid}/status`, "utf8") : "";
    peakKib = Math.max(peakKib, Number(/VmHWM:\s*(\d+)/.exec(status)?.[1] ?? 0));
  }, 50);
  const { code, stdout } = await finished;
  clearInterval(watch);
  expect([code, stdout]).toEqual([1, expect.stringContaining("2 created, 0 unchanged, 1 refused")]);
  expect((await reportOf(file))[1]?.detail).toContain("longer than");
  expect(peakKib).toBeLessThan(300 * 1_024);
});

test("each line is reported in its order, and one that does not fit keeps back no other", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const file = await writeLines([
    {
      email: "ann@example.com",
      email_verified: true,
      create_time: "2014-05-06T07:08:09Z",
      state: "USER_STATE_INACTIVE",
    },
    { phone: "+14155552671", displayName: "Bob" },
    "no JSON",
    "",
    { email: "c@example.com", e_mail: "misspelled" },
    { email: 7 },
    "[]",
    { email: "d@example.com", user_id: "no id" },
    { email: "ann@example.com", display_name: "Other" },
    { email: "last@example.com" },
  ]);
  const first = await runImport([file, "--tenant", tenantId], server, await importer(server));
  expect(first).toEqual({
    code: 1,
    stdout: `3 created, 0 unchanged, 6 refused (1 EMAIL_TAKEN, 5 INVALID_REQUEST); each line: ${file}.report\n`,
    stderr: "",
  });
  const report = await reportOf(file);
  expect(report.map(({ line, status, reason }) => [line, reason ?? status])).toEqual([
    [1, "IMPORT_STATUS_CREATED"],
    [2, "IMPORT_STATUS_CREATED"],
    [3, "INVALID_REQUEST"],
    [5, "INVALID_REQUEST"],
    [6, "INVALID_REQUEST"],
    [7, "INVALID_REQUEST"],
    [8, "INVALID_REQUEST"],
    [9, "EMAIL_TAKEN"],
    [10, "IMPORT_STATUS_CREATED"],
  ]);
  expect(report[2]?.detail).toBe("no JSON");
  expect(report[3]?.detail).toContain("e_mail");
  expect(report[6]?.detail).toMatch(/^user_id: /);
  const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value: report[0]?.user_id ?? "" } });
  expect(user).toMatchObject({ email: "ann@example.com", emailVerified: true });
  expect((await stat(`${file}.report`)).mode & 0o777).toBe(0o600);
});

test("what the server would refuse without a word is told by its field", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const file = await writeLines([
    { email: "no address" },
    { email: "ann@example.com", phone: "030 123456" },
    { display_name: "Nobody" },
    { email: "ann@example.com", phone_verified: true },
    { email: "ann@example.com", google_subject: "é" },
    { email: "ann@example.com", state: "USER_STATE_ERASED" },
  ]);
  const { stdout } = await runImport([file, "--tenant", tenantId], server, await importer(server));
  expect(stdout).toContain("0 created, 0 unchanged, 6 refused (6 INVALID_REQUEST)");
  expect((await reportOf(file)).map(({ detail }) => detail?.split(":")[0])).toEqual([
    "email",
    "phone",
    "email, phone",
    "phone_verified",
    "google_subject",
    "state",
  ]);
});

test("a run that fails at once leaves the former report, and says to repeat it where that may help", async () => {
  const server = await startService("grpc");
  const file = await writeLines([{ email: "ann@example.com" }]);
  await writeFile(`${file}.report`, "former\n");
  const { code, stderr } = await runImport([file, "--tenant", randomUUID()], server, await importer(server));
  expect(code).toBe(1);
  expect(stderr).toMatch(/TENANT_NOT_FOUND.*; what was imported stands\n$/);
  expect(await readFile(`${file}.report`, "utf8")).toBe("former\n");
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
  const pipe = join(await temporaryFolder(), "people.ndjson");
  await promisify(execFile)("mkfifo", [pipe]);
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
      const metrics = await fetch(`http://127.0.0.1:${server.httpPort}/metrics`);
      expect(await metrics.text()).toMatch(unavailable);
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
    failing([`${file}.gone`, "--tenant", tenantId], /people\.ndjson\.gone cannot be opened: ENOENT/),
    failing([tmpdir(), "--tenant", tenantId], /cannot be opened: EISDIR/),
    failing([file, "--tenant", "acme"], /^the server refused: INVALID_REQUEST/),
    failing([file, "--tenant", randomUUID()], /^the server refused: TENANT_NOT_FOUND/),
    failing(args, /^the server refused: PERMISSION_MISSING/, { SERVICE_TOKEN: token }),
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
