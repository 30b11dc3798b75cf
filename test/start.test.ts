import { mkdtemp, readFile, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { NOBODY_LISTENS, freePort, isOpen, takenPort } from "./support/ports.ts";
import { runCommand } from "./support/run-command.ts";
import { type ServerProcess, startProcess } from "./support/server-process.ts";
import { clientsOf, launchService } from "./support/service.ts";
import { temporaryFolder } from "./support/temporary-folder.ts";

// PGSSLMODE says of other databases how to reach them.
const NOTHING = {
  DATABASE_URL: "",
  SECRET_PEPPERS: "",
  JWT_KEYS_FILE: "",
  NODE_ENV: "development",
  PGSSLMODE: "require",
};

/** One for all tests here: to make a database takes longer than all else of a start. */
let dataDir: string;
beforeAll(async () => {
  dataDir = await mkdtemp(join(tmpdir(), "auth-service-start-"));
});
afterAll(() => rm(dataDir, { recursive: true, force: true }));

/** What PostgreSQL's folder holds. */
const clusterFiles = () => readdir(join(dataDir, "postgres", "cluster"));

/** A start as on a fresh machine, once it has told people that it is ready. */
const startWithout = async (): Promise<ServerProcess> => {
  const server = await startProcess("", { ...NOTHING, DATA_DIR: dataDir });
  await expect.poll(server.said).toMatch(/^try: .*\n/m);
  return server;
};

const end = ({ process: server, exit }: ServerProcess) => {
  server.kill("SIGTERM");
  return exit;
};

/** What the command of this name prints, beside a server. */
const printed = async (command: string, { grpcPort }: ServerProcess): Promise<string> => {
  const env = { GRPC_HOST: "127.0.0.1", GRPC_PORT: String(grpcPort), DATA_DIR: dataDir };
  const { code, stdout, stderr } = await runCommand(command, [], env);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return stdout;
};

const rootsOf = async (server: ServerProcess, token: string) => {
  const { services } = clientsOf("connect", server)({ authorization: `Bearer ${token.trimEnd()}` });
  return (await services.listServices({})).services.map(({ key, permissions }) => [key, permissions]);
};

test("a start without a database makes one, root and the keys, says so, and goes on with them the next time", async () => {
  const secretFile = join(dataDir, "root.secret");
  await writeFile(secretFile, "of a database that is gone\n", { mode: 0o644 });
  const first = await startWithout();
  const secret = await readFile(secretFile, "utf8");
  expect(secret).toMatch(/^sks_\S+\n$/);
  expect(first.said()).toContain(`
ready: gRPC on 127.0.0.1:${first.grpcPort}, HTTP on 127.0.0.1:${first.httpPort}
root secret, shown this once (also in ${secretFile}): ${secret}\
try: grpcurl -plaintext -H "authorization: Bearer $(npm run --silent token)" localhost:${first.grpcPort} service_identity`);
  const made = ["secret.peppers", "jwt-keys.json"].map((name) => join(dataDir, name));
  for (const file of made) expect(first.said()).toContain(`"file":"${file}"`);
  for (const file of [secretFile, ...made]) expect((await stat(file)).mode & 0o777).toBe(0o600);
  const token = await printed("token", first);
  expect(token).toMatch(/^skt_\S+\n$/);
  expect(await rootsOf(first, token)).toEqual([["root", ["*"]]]);
  await printed("health-check", first);
  expect(await clusterFiles()).toContain("postmaster.pid");
  expect(await end(first)).toBe(0);
  expect(await clusterFiles()).not.toContain("postmaster.pid");

  const second = await startWithout();
  expect(second.said()).not.toContain("root secret");
  expect(second.said()).not.toContain("made one for development");
  expect(await readFile(secretFile, "utf8")).toBe(secret);
  expect(await rootsOf(second, token)).toEqual([["root", ["*"]]]);
  expect(await printed("token", second)).not.toBe(token);
  expect(await end(second)).toBe(0);
});

test("a root secret that could not be kept is made again by the next start", async () => {
  const secretFile = join(dataDir, "root.secret");
  await rm(secretFile, { force: true });
  const server = await startWithout();
  expect(server.said()).toContain(`in ${secretFile}): ${await readFile(secretFile, "utf8")}`);
  expect(await rootsOf(server, await printed("token", server))).toEqual([["root", ["*"]]]);
  expect(await end(server)).toBe(0);
});

test("a start that fails leaves no database running", async () => {
  const port = await takenPort();
  const failed = startProcess("", { ...NOTHING, DATA_DIR: dataDir, GRPC_PORT: String(port) });
  await expect(failed).rejects.toThrow("the server ended with 1");
  const files = await clusterFiles();
  expect(files).toContain("PG_VERSION");
  expect(files).not.toContain("postmaster.pid");
});

test.each(["health-check", "token"])("%s says where it looked for a server that is not there", async (command) => {
  const dataDir = await temporaryFolder();
  await writeFile(join(dataDir, "root.secret"), "none");
  expect(await runCommand(command, [], { GRPC_PORT: String(NOBODY_LISTENS), DATA_DIR: dataDir })).toEqual({
    code: 1,
    stdout: "",
    stderr: `nobody listens at http://127.0.0.1:${NOBODY_LISTENS}: is the server running, with this configuration?\n`,
  });
});

test("a start that finds a port taken says so, and leaves the other port closed", async () => {
  const port = await takenPort();
  const other = await freePort();
  // Nobody was told that it serves, so nobody is waited for.
  const env = { SHUTDOWN_DELAY: "90s" };
  const withGrpc = launchService("grpc", { env: { ...env, GRPC_PORT: String(port) }, httpPort: other });
  await expect(withGrpc).rejects.toThrow(/^GRPC_HOST, GRPC_PORT: .*EADDRINUSE/);
  const withHttp = launchService("grpc", { env: { ...env, GRPC_PORT: String(other) }, httpPort: port });
  await expect(withHttp).rejects.toThrow(/^HTTP_HOST, HTTP_PORT: .*EADDRINUSE/);
  expect(await isOpen(other)).toBe(false);
});
