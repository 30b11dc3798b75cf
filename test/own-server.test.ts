import { writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createSecureServer } from "node:http2";
import { join } from "node:path";
import { Code, type Transport, createClient } from "@connectrpc/connect";
import { expect, onTestFinished, test } from "vitest";
import { callOwnServer } from "../src/commands/own-server.ts";
import { parseConfig } from "../src/config.ts";
import { OrgService } from "../src/gen/org/v1/org_pb.ts";
import { type Identity, makeAuthority, makeIdentity } from "./support/certificates.ts";
import { listenOn } from "./support/ports.ts";
import { runCommand } from "./support/run-command.ts";
import { startSilentServer } from "./support/silent-server.ts";
import { temporaryFolder } from "./support/temporary-folder.ts";

const authority = await makeAuthority("authority");
const own = await makeIdentity("own", authority);
const TOKEN = "Bearer of a service";

/** Somebody who has the port, and refuses all that he is told. */
const listen = async ({ cert, key }: Identity) => {
  const told: (string | undefined)[] = [];
  const server = createSecureServer({ cert, key }, (request, response) => {
    told.push(request.headers.authorization);
    response.writeHead(200, { "content-type": "application/grpc", "grpc-status": String(Code.Unauthenticated) }).end();
  });
  onTestFinished(() => void server.close());
  return { port: await listenOn(server), told };
};

/** What a command sends to the server whose certificate is `own`, with those above it. */
const callOwn = async (port: number, options?: { readonly anybody: boolean }) => {
  const folder = await temporaryFolder();
  const [certFile, keyFile] = [join(folder, "cert.pem"), join(folder, "key.pem")];
  await writeFile(certFile, `${own.cert}\n${authority.cert}\n`);
  await writeFile(keyFile, own.key);
  const config = parseConfig({ GRPC_PORT: String(port), TLS_CERT_FILE: certFile, TLS_KEY_FILE: keyFile });
  const headers = { authorization: TOKEN };
  const call = (transport: Transport) => createClient(OrgService, transport).listTenants({}, { headers });
  return callOwnServer(config, call, options);
};

test("a command speaks to a server with the key of TLS_CERT_FILE, whatever name the certificate has", async () => {
  const { port, told } = await listen(own);
  await expect(callOwn(port)).rejects.toMatchObject({ code: Code.Unauthenticated });
  expect(told).toEqual([TOKEN]);
});

test.each([
  ["of his own", await makeAuthority("own")],
  ["by the same authority", await makeIdentity("own", authority)],
])("a command tells nothing to whoever has the port with a certificate %s", async (_, identity) => {
  const { port, told } = await listen(identity);
  await expect(callOwn(port)).rejects.toThrow("certificate");
  expect(told).toEqual([]);
});

test("a health check, which tells nothing, also hears a server that goes on with its former certificate", async () => {
  const { port, told } = await listen(await makeIdentity("former", authority));
  await expect(callOwn(port, { anybody: true })).rejects.toMatchObject({ code: Code.Unauthenticated });
  expect(told).toHaveLength(1);
});

test.each(["token", "demo"])("%s ends with the server's address where a server says nothing", async (command) => {
  const { port } = await startSilentServer();
  const folder = await temporaryFolder();
  await writeFile(join(folder, "root.secret"), "a secret\n");
  const env = { GRPC_HOST: "127.0.0.1", GRPC_PORT: String(port), DATA_DIR: folder, CALL_TIMEOUT: "1ms" };
  const stderr = `the server at http://127.0.0.1:${port} did not answer in time: [deadline_exceeded] the operation timed out\n`;
  expect(await runCommand(command, [], env)).toEqual({ code: 1, stdout: "", stderr });
});

test("a server of another protocol is told of in one line", async () => {
  const server = createServer((_, response) => void response.end("hello"));
  onTestFinished(() => void server.close());
  const port = await listenOn(server);
  const env = { GRPC_HOST: "127.0.0.1", GRPC_PORT: String(port) };
  expect(await runCommand("health-check", [], env)).toEqual({
    code: 1,
    stdout: "",
    stderr: `no gRPC is spoken at http://127.0.0.1:${port}\n`,
  });
});
