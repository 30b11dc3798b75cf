import { once } from "node:events";
import { mkdir, rename, rm, symlink, writeFile } from "node:fs/promises";
import https from "node:https";
import { join } from "node:path";
import tls from "node:tls";
import { status } from "@grpc/grpc-js";
import { afterEach, expect, onTestFinished, test } from "vitest";
import { watchCertificates } from "../../src/rpc/tls.ts";
import { makeAuthority, makeIdentity, type Identity } from "../support/certificates.ts";
import { timersOf } from "../support/timers.ts";
import { grpcPort, handshake, httpPort, ports } from "../support/tls-ports.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const lines: { level: string; fields: object; message: string }[] = [];
const log = {
  info: (fields: object, message: string) => void lines.push({ level: "info", fields, message }),
  warn: (fields: object, message: string) => void lines.push({ level: "warn", fields, message }),
};
const warnings = () => lines.filter(({ level }) => level === "warn");
afterEach(() => void lines.splice(0));

async function mounted(identity: Identity, clientCa?: Identity) {
  const dir = await temporaryFolder();
  const files = {
    certFile: join(dir, "tls.crt"),
    keyFile: join(dir, "tls.key"),
    ...(clientCa && { clientCaFile: join(dir, "ca.crt") }),
  };
  const write = async ({ cert, key }: Identity) => {
    await writeFile(files.certFile, cert);
    await writeFile(files.keyFile, key);
  };
  const writeClientCa = (text: string) => writeFile(join(dir, "ca.crt"), text);
  await write(identity);
  if (clientCa) await writeClientCa(clientCa.cert);
  return { dir, files, write, writeClientCa };
}

async function watched(files: Parameters<typeof watchCertificates>[0], pollMs = 3_600_000) {
  const certificates = await watchCertificates(files, { pollMs, log });
  onTestFinished(() => certificates.close());
  return certificates;
}

const [formerCa, renewedCa, clientCa, foreignCa] = await Promise.all([
  makeAuthority("former CA"),
  makeAuthority("renewed CA"),
  makeAuthority("client CA"),
  makeAuthority("foreign CA"),
]);
const [former, renewed, client, foreigner] = await Promise.all([
  makeIdentity("former", formerCa),
  makeIdentity("renewed", renewedCa),
  makeIdentity("client", clientCa),
  makeIdentity("foreigner", foreignCa),
]);

test.each(ports)("%s: new connections get the renewed certificate, an open one goes on", async (_name, listen) => {
  const { files, write } = await mounted(former);
  const certificates = await watched(files);
  const { port, connect } = await listen(certificates);
  // It trusts the former CA alone, so it could not connect again: what it calls goes over the open connection.
  const open = connect(formerCa);
  expect(await open.call()).toBe("pong");

  await write(renewed);
  await certificates.reload();

  expect((await handshake(port)).name).toBe("CN=renewed");
  expect(await connect(renewedCa).call()).toBe("pong");
  await expect(connect(formerCa).call()).rejects.toThrow();
  expect(await open.call()).toBe("pong");
  expect((await handshake((await listen(certificates)).port)).name).toBe("CN=renewed");
  await certificates.reload();
  expect(lines).toMatchObject([{ level: "info", fields: { subject: "CN=renewed" } }]);
});

const broken = [
  ["half-written certificate", { cert: renewed.cert.slice(0, 300), key: renewed.key }, "TLS_CERT_FILE"],
  [
    "chain cut off in its second certificate",
    { cert: renewed.cert + renewedCa.cert.slice(0, 300), key: renewed.key },
    "TLS_CERT_FILE",
  ],
  ["half-written key", { cert: renewed.cert, key: renewed.key.slice(0, 60) }, "TLS_KEY_FILE"],
  ["empty key", { cert: renewed.cert, key: "" }, "TLS_KEY_FILE"],
  ["certificate without its key", { cert: renewed.cert, key: former.key }, "TLS_KEY_FILE"],
] as const;

test.each(ports)("%s: what cannot serve keeps the former, told once for each content", async (_name, listen) => {
  const { files, write } = await mounted(former);
  const certificates = await watched(files);
  const { port } = await listen(certificates);
  for (const [index, [what, pair, variable]] of broken.entries()) {
    await write(pair);
    await certificates.reload();
    await certificates.reload();
    expect((await handshake(port)).name, what).toBe("CN=former");
    expect(warnings(), what).toHaveLength(index + 1);
    expect(JSON.stringify(warnings().at(-1)), what).toContain(variable);
  }
  await rm(files.keyFile);
  await certificates.reload();
  await certificates.reload();
  expect((await handshake(port)).name).toBe("CN=former");
  expect(warnings()).toHaveLength(broken.length + 1);
  expect(JSON.stringify(lines)).not.toContain(renewed.key.split("\n")[1]!.slice(0, 20));

  await write(renewed);
  await certificates.reload();
  expect((await handshake(port)).name).toBe("CN=renewed");
});

test.each(ports)("%s: with a client CA, no certificate and a foreign one are refused", async (_name, listen) => {
  const { files } = await mounted(former, clientCa);
  const { connect } = await listen(await watched(files));
  expect(await connect(formerCa, client).call()).toBe("pong");
  await expect(connect(formerCa).call()).rejects.toThrow();
  await expect(connect(formerCa, foreigner).call()).rejects.toThrow();
});

test("gRPC: a refused client is told UNAVAILABLE", async () => {
  const { files } = await mounted(former, clientCa);
  const { connect } = await grpcPort(await watched(files));
  await expect(connect(formerCa).call()).rejects.toMatchObject({ code: status.UNAVAILABLE });
});

test.each(ports)("%s: a renewed client CA takes hold, of resumed sessions too", async (_name, listen) => {
  const { files, writeClientCa } = await mounted(former, clientCa);
  const certificates = await watched(files);
  const { port, connect } = await listen(certificates);
  const resumable = async (session?: Buffer) => {
    const socket = tls.connect({
      port,
      host: "localhost",
      ca: formerCa.cert,
      ALPNProtocols: ["h2"],
      ...client,
      ...(session && { session }),
    });
    onTestFinished(() => void socket.destroy());
    let ticket: Buffer | undefined;
    socket.on("session", (latest) => (ticket = latest));
    // In TLS 1.3 the client's side is done before the server accepts or refuses: only its first bytes tell.
    const accepted = await Promise.race([
      once(socket, "data"),
      once(socket, "close").then(() => Promise.reject(new Error("closed"))),
    ]).then(
      () => true,
      () => false,
    );
    return { ticket, accepted, reused: socket.isSessionReused() };
  };
  const { ticket } = await resumable();
  expect(await resumable(ticket)).toMatchObject({ accepted: true, reused: true });

  const cut = foreignCa.cert.slice(0, 300);
  for (const list of [cut, renewedCa.cert + cut]) {
    await writeClientCa(list);
    await certificates.reload();
    expect(await connect(formerCa, client).call()).toBe("pong");
    expect(JSON.stringify(warnings().at(-1))).toContain("TLS_CLIENT_CA_FILE");
  }

  await writeClientCa(foreignCa.cert);
  await certificates.reload();
  expect(await connect(formerCa, foreigner).call()).toBe("pong");
  await expect(connect(formerCa, client).call()).rejects.toThrow();
  await expect(connect(formerCa).call()).rejects.toThrow();
  expect(await resumable(ticket)).toMatchObject({ accepted: false });
});

/** As Kubernetes mounts a secret: one symlink is swapped, and all files change behind it. */
async function mountedAsSecret() {
  const { dir, write } = await mounted(former);
  await write(former);
  for (const [name, { cert, key }] of [
    ["..former", former],
    ["..renewed", renewed],
  ] as const) {
    await mkdir(join(dir, name));
    await writeFile(join(dir, name, "tls.crt"), cert);
    await writeFile(join(dir, name, "tls.key"), key);
  }
  const prepare = (name: "..former" | "..renewed") => symlink(name, join(dir, "..new"));
  const swap = () => rename(join(dir, "..new"), join(dir, "..data"));
  await prepare("..former");
  await swap();
  for (const file of ["tls.crt", "tls.key"]) {
    await rm(join(dir, file));
    await symlink(join("..data", file), join(dir, file));
  }
  return { files: { certFile: join(dir, "tls.crt"), keyFile: join(dir, "tls.key") }, prepare, swap };
}

test("a swapped symlink is seen by the poll itself", async () => {
  const { files, prepare, swap } = await mountedAsSecret();
  const certificates = await watched(files, 5);
  const { port } = await grpcPort(certificates);
  expect((await handshake(port)).name).toBe("CN=former");

  const changed = new Promise((resolve) => certificates.onChange(resolve));
  await prepare("..renewed");
  await swap();
  await changed;
  expect((await handshake(port)).name).toBe("CN=renewed");
});

test("a swap between the reading of two files is no mismatch", async () => {
  const { files, prepare, swap } = await mountedAsSecret();
  const certificates = await watched(files);
  for (let round = 0; round < 400; round++) {
    await prepare(round % 2 ? "..former" : "..renewed");
    await Promise.all([swap(), certificates.reload()]);
  }
  expect(warnings()).toEqual([]);
});

test("closing ends the poll, and an open one keeps no process alive", async () => {
  const { files } = await mounted(former);
  const pollMs = 86_399_999;
  const polls = timersOf(pollMs);
  const certificates = await watched(files, pollMs);
  expect(polls().map(({ timer }) => timer.hasRef())).toEqual([false]);

  // Closed while a poll is under way, which would set the next one.
  polls()[0]!.fire();
  certificates.close();
  await certificates.reload();
  expect(polls()).toHaveLength(1);
});

test.each(broken)("a start with a %s names the variable", async (_what, pair, variable) => {
  const { files } = await mounted(pair);
  await expect(watchCertificates(files, { pollMs: 1_000, log })).rejects.toThrow(variable);
});

test.each([
  ["certFile", "TLS_CERT_FILE"],
  ["keyFile", "TLS_KEY_FILE"],
  ["clientCaFile", "TLS_CLIENT_CA_FILE"],
])("a start without %s names %s and the reason", async (file, variable) => {
  const { dir, files } = await mounted(former, clientCa);
  const missing = { ...files, [file]: join(dir, "missing.pem") };
  await expect(watchCertificates(missing, { pollMs: 1_000, log })).rejects.toThrow(new RegExp(`${variable}.*ENOENT`));
});

test("gRPC agrees on h2, HTTP also on HTTP/1.1, and nothing below TLS 1.2, before and after a renewal", async () => {
  const { files, write } = await mounted(former);
  // The least that a flag or OPENSSL_CONF could allow.
  const { DEFAULT_MIN_VERSION, DEFAULT_CIPHERS } = tls;
  onTestFinished(() => void Object.assign(tls, { DEFAULT_MIN_VERSION, DEFAULT_CIPHERS }));
  Object.assign(tls, { DEFAULT_MIN_VERSION: "TLSv1", DEFAULT_CIPHERS: "DEFAULT@SECLEVEL=0" });
  const certificates = await watched(files);
  const grpc = await grpcPort(certificates);
  const http = await httpPort(certificates);
  const outdated = { maxVersion: "TLSv1.1" } as const;
  for (const identity of [former, renewed]) {
    await write(identity);
    await certificates.reload();
    expect(await handshake(grpc.port)).toMatchObject({ alpn: "h2", protocol: "TLSv1.3" });
    expect(await handshake(http.port, { maxVersion: "TLSv1.2" })).toMatchObject({ alpn: "h2", protocol: "TLSv1.2" });
    for (const { port } of [grpc, http]) await expect(handshake(port, outdated)).rejects.toThrow();
  }
  const request = https.get({ port: http.port, host: "localhost", ca: renewedCa.cert, agent: false });
  const [response] = (await once(request, "response")) as [NodeJS.ReadableStream & { httpVersion: string }];
  expect(response.httpVersion).toBe("1.1");
  response.resume();
});

test.each(ports)("%s: TLS 1.2 has forward secrecy and no CBC, before and after a renewal", async (_name, listen) => {
  const identities = await Promise.all(["former", "renewed"].map((name) => makeAuthority(name, "rsa")));
  const { files, write } = await mounted(identities[0]!);
  const certificates = await watched(files);
  const { port } = await listen(certificates);
  const agree = (ciphers: string) => handshake(port, { maxVersion: "TLSv1.2", ciphers });
  for (const identity of identities) {
    await write(identity);
    await certificates.reload();
    expect(await agree("ECDHE-RSA-AES128-GCM-SHA256")).toMatchObject({ alpn: "h2", protocol: "TLSv1.2" });
    for (const suite of ["AES128-GCM-SHA256", "AES256-SHA", "ECDHE-RSA-AES128-SHA256"]) {
      await expect(agree(suite), suite).rejects.toThrow();
    }
  }
});
