import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { makeAuthority, makeIdentity } from "./support/certificates.ts";
import { type TestDatabase, createDatabase, createEmptyDatabase } from "./support/database.ts";
import { NOBODY_LISTENS } from "./support/ports.ts";
import { productionEnv } from "./support/production.ts";
import { runCommand } from "./support/run-command.ts";
import { serveTls } from "./support/serve-tls.ts";
import { serve } from "./support/serve.ts";
import { startSilentServer } from "./support/silent-server.ts";
import { temporaryFolder } from "./support/temporary-folder.ts";

type Environment = Readonly<Record<string, string>>;

const check = (grpcPort: number, args: readonly string[] = [], env: Environment = {}) =>
  runCommand("health-check", args, { GRPC_HOST: "127.0.0.1", GRPC_PORT: String(grpcPort), ...env });

const WELL = { code: 0, stdout: "", stderr: "" };
const failing = (stderr: unknown) => ({ code: 1, stdout: "", stderr });

let database: TestDatabase;

beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database.drop());

test("it ends with 0 while the server is ready, or what is named is SERVING", async () => {
  const empty = await createEmptyDatabase();
  const [ready, pending] = await Promise.all([serve(database.url), serve(empty.url)]);
  onTestFinished(async () => {
    await Promise.all([ready.stop(), pending.stop()]);
    await empty.drop();
  });
  expect(await check(ready.grpcPort)).toEqual(WELL);
  expect(await check(ready.grpcPort, ["org.v1.OrgService"])).toEqual(WELL);
  expect(await check(pending.grpcPort, ["liveness"])).toEqual(WELL);
  expect(await check(pending.grpcPort)).toEqual(failing("readiness is not serving\n"));
  expect(await check(pending.grpcPort, [""])).toEqual(failing("the server is not serving\n"));
  expect(await check(ready.grpcPort, ["no.such.Service"])).toMatchObject({ code: 1 });
});

test("a server that does not answer is not waited for", async () => {
  const { port } = await startSilentServer();
  expect(await check(port)).toEqual(failing(expect.stringContaining("deadline_exceeded")));
});

test("over TLS it shows the server's own certificate where clients need one, and says what that takes", async () => {
  const folder = await temporaryFolder();
  const write = async (name: string, text: string) => {
    await writeFile(join(folder, name), text);
    return join(folder, name);
  };
  const [own, foreign] = await Promise.all([makeAuthority("own"), makeAuthority("foreign")]);
  // In the service's name, which is not this machine's.
  const { cert, key } = await makeIdentity("server", own);
  const plain = { TLS_CERT_FILE: await write("tls.crt", cert), TLS_KEY_FILE: await write("tls.key", key) };
  const signed = { ...plain, TLS_CLIENT_CA_FILE: await write("own.crt", own.cert) };
  const strange = { ...plain, TLS_CLIENT_CA_FILE: await write("foreign.crt", foreign.cert) };
  const checkWith = async (env: Environment) => {
    const server = await serve(database.url, env);
    onTestFinished(() => server.stop());
    return check(server.grpcPort, [], env);
  };
  expect(await checkWith(plain)).toEqual(WELL);
  expect(await check(NOBODY_LISTENS, [], plain)).toEqual(
    failing(expect.stringMatching(/^nobody listens at https:\/\/127\.0\.0\.1:1: .* with this configuration\?\n$/)),
  );
  expect(await checkWith(signed)).toEqual(WELL);
  expect(await checkWith(strange)).toEqual(
    failing(expect.stringMatching(/ \(TLS_CLIENT_CA_FILE must have signed TLS_CERT_FILE for this check\)\n$/)),
  );
});

test("over TLS it needs no file where the server needs none any more, and names the variable of one that it needs", async () => {
  const { server, files, ca } = await serveTls(database.url);
  onTestFinished(() => server.stop());
  await rm(files.TLS_CERT_FILE);
  expect(await check(server.grpcPort, [], files)).toEqual(WELL);
  await writeFile(files.TLS_CERT_FILE, ca);
  // A key in the place of its file's name must not be repeated.
  const needed = {
    ...files,
    TLS_KEY_FILE: "-----BEGIN PRIVATE KEY-----hunter2",
    TLS_CLIENT_CA_FILE: files.TLS_CERT_FILE,
  };
  const stderr = "the configuration is not usable:\n  TLS_KEY_FILE cannot be read: ENOENT\n";
  expect(await check(server.grpcPort, [], needed)).toEqual({ code: 78, stdout: "", stderr });
});

test("token names the variable where there is no certificate in its file", async () => {
  const file = join(await temporaryFolder(), "tls.crt");
  await writeFile(file, "-----BEGIN CERTIFICATE-----\n");
  const stderr = "the configuration is not usable:\n  TLS_CERT_FILE holds no complete PEM certificate\n";
  const env = { TLS_CERT_FILE: file, TLS_KEY_FILE: file };
  expect(await runCommand("token", [], env)).toEqual({ code: 78, stdout: "", stderr });
});

test.each(["token", "demo"])("%s is of development alone", async (command) => {
  const { code, stdout, stderr } = await runCommand(command, [], productionEnv());
  expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
  expect(stderr).toMatch(/^development only: /);
});

test("token without root's secret says where it belongs", async () => {
  const { code, stdout, stderr } = await runCommand("token", [], { DATA_DIR: "/none" });
  expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
  expect(stderr).toMatch(/^\/none\/root\.secret cannot be read: run `npm start` /);
});
