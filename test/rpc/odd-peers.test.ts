import { once } from "node:events";
import { type ClientHttp2Session, connect as connectHttp2, constants } from "node:http2";
import { connect as connectTcp } from "node:net";
import { text } from "node:stream/consumers";
import { setImmediate } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, onTestFinished, test, vi } from "vitest";
import type { RunningServer } from "../../src/server.ts";
import { type TestDatabase, createRootedDatabase } from "../support/database.ts";
import { frame } from "../support/frames.ts";
import { type LoggedLines, loggedLines } from "../support/logged-lines.ts";
import { serve } from "../support/serve.ts";
import { serveTls } from "../support/serve-tls.ts";
import { clientsOf } from "../support/service.ts";

const LIST = "/org.v1.OrgService/ListTenants";
const WATCH = "/org.v1.OrgService/WatchAuditEvents";
const MESSAGE_MAX = 65_536;

let database: TestDatabase;
let plain: RunningServer;
let secure: RunningServer;
let logged: LoggedLines;
let ca: string;
let authorization: string;
let session: ClientHttp2Session;

beforeAll(async () => {
  database = await createRootedDatabase();
  logged = loggedLines();
  const env = { MESSAGE_MAX_BYTES: String(MESSAGE_MAX) };
  plain = await serve(database.url, env);
  ({ server: secure, ca } = await serveTls(database.url, env, logged.log));
  const { services } = clientsOf("grpc", plain)({});
  const { serviceToken } = await services.authenticateService({ key: "root", secret: inject("rootSecret") });
  authorization = `Bearer ${serviceToken}`;
});
afterAll(async () => {
  await Promise.all([plain.stop(), secure.stop()]);
  await database.drop();
});
beforeEach(() => {
  session = connectHttp2(`https://localhost:${secure.httpPort}`, { ca });
});
afterEach(() => session.destroy());

/** What a peer is answered who says this over TCP, and no more. */
const said = async (request: string) => {
  const socket = connectTcp(plain.httpPort!, "127.0.0.1");
  socket.write(request);
  return text(socket);
};

test.each([
  ["that is none", `POST ${LIST} HTTP/1.1\r\nhost: [\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`],
  ["that is missing, as HTTP/1.0 lets it be", `POST ${LIST} HTTP/1.0\r\ncontent-length: 0\r\n\r\n`],
])("HTTP/1: an authority %s is the caller's fault alone", async (_, request) => {
  const content = request.replace("content-length", "content-type: application/json\r\ncontent-length");
  expect(await said(content)).toMatch(/^HTTP\/1.1 400 /);
  expect((await fetch(`http://127.0.0.1:${plain.httpPort}/healthz`)).status).toBeLessThan(600);
});

test("HTTP/1: a peer that goes after several requests at once ends nothing but its connection", async () => {
  const onFault = vi.fn<(error: Error) => void>();
  process.on("uncaughtExceptionMonitor", onFault);
  onTestFinished(() => void process.off("uncaughtExceptionMonitor", onFault));
  const refused = `POST ${LIST} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}`;
  // In different moments of what becomes of them.
  for (let turns = 0; turns < 40; turns++) {
    const peer = connectTcp(plain.httpPort!, "127.0.0.1");
    await once(peer, "connect");
    peer.write(refused.repeat(3));
    for (let turn = 0; turn < turns % 20; turn++) await setImmediate();
    peer.resetAndDestroy();
  }
  // Made after the last one was reset, and so seen after it.
  expect((await fetch(`http://127.0.0.1:${plain.httpPort}/healthz`)).status).toBeLessThan(600);
  expect(onFault).not.toHaveBeenCalled();
});

const post = (path: string, headers: Readonly<Record<string, string>> = {}) => {
  const usual = { ":method": "POST", ":path": path, "content-type": "application/json", authorization };
  const stream = session.request({ ...usual, ...headers });
  stream.on("error", () => undefined);
  return stream;
};

test("HTTP/2: so it is there", async () => {
  const stream = post(LIST, { ":authority": "[" });
  stream.end("{}");
  const [{ ":status": status }] = (await once(stream, "response")) as [Record<string, unknown>];
  expect(status).toBe(400);
});

test.each(["NGHTTP2_INTERNAL_ERROR", "NGHTTP2_REFUSED_STREAM", "NGHTTP2_ENHANCE_YOUR_CALM", "NGHTTP2_CANCEL"] as const)(
  "a caller who resets by %s has gone, from a stream and in the middle of his message",
  async (code) => {
    const answered = () => once(post(LIST).end("{}"), "response");
    await answered();
    const watch = post(WATCH, { "content-type": "application/connect+json", "x-request-id": `watch ${code}` });
    watch.end(frame("{}"));
    const half = post(LIST, { "x-request-id": `half ${code}`, "content-length": "20" });
    half.write("{");
    // What came before it on this connection is under way.
    await answered();
    for (const stream of [watch, half]) stream.close(constants[code]);
    for (const id of [`watch ${code}`, `half ${code}`])
      await expect.poll(() => logged.of(id).map(({ reason }) => reason)).toEqual(["CANCELLED"]);
  },
);

test("HTTP/2: a native gRPC call that is refused before its message is read has its status", async () => {
  const stream = post(LIST, { "content-type": "application/grpc", te: "trailers", authorization: "Bearer x" });
  stream.end(frame(Buffer.alloc(20_000)));
  stream.resume();
  const [trailers] = (await once(stream, "trailers")) as [Record<string, unknown>];
  expect(trailers["grpc-status"]).toBe("16");
});

test("a message too large is not waited for: the stream is closed, and the connection serves on", async () => {
  const large = post(LIST);
  large.write(Buffer.alloc(MESSAGE_MAX + 1, " "));
  const [{ ":status": status }] = (await once(large, "response")) as [Record<string, unknown>];
  expect(status).toBe(429);
  large.resume();
  await once(large, "close");
  const [{ ":status": next }] = (await once(post(LIST).end("{}"), "response")) as [Record<string, unknown>];
  expect(next).toBe(200);
});

/** As HTTP/1.1 sends a part of a message whose length it does not say. */
const chunk = (data: Buffer) =>
  Buffer.concat([Buffer.from(`${data.length.toString(16)}\r\n`), data, Buffer.from("\r\n")]);

test.each([
  ["of JSON", "application/json", Buffer.alloc(MESSAGE_MAX + 1, " ")],
  ["of gRPC-Web", "application/grpc-web+proto", frame("").fill(0xff, 1)],
])(
  "HTTP/1.1: the rest of a message %s that is too large is thrown away, and the next request answered",
  async (...row) => {
    const [, type, start] = row;
    const socket = connectTcp(plain.httpPort!, "127.0.0.1");
    const head = [`POST ${LIST} HTTP/1.1`, "host: a", `authorization: ${authorization}`];
    socket.write([...head, `content-type: ${type}`, "transfer-encoding: chunked", "", ""].join("\r\n"));
    socket.write(chunk(start));
    const [refusal] = (await once(socket, "data")) as [Buffer];
    expect(refusal.toString()).not.toMatch(/connection: close/i);
    socket.write(Buffer.concat([chunk(Buffer.alloc(MESSAGE_MAX * 40, " ")), chunk(Buffer.alloc(0))]));
    socket.write(
      [...head, "content-type: application/json", "connection: close", "content-length: 2", "", "{}"].join("\r\n"),
    );
    expect(await text(socket)).toMatch(/HTTP\/1.1 200 /);
  },
);

test.each([
  ["GET", "/healthz", "ok\n"],
  ["POST", "/auth.v1.AuthService/GetJwks", "jwksJson"],
])("a request that names its whole URL is answered as by its path: %s %s", async (method, path, answer) => {
  const socket = connectTcp(plain.httpPort ?? 0, "127.0.0.1");
  const head = ["Host: auth.example", "Connection: close", "Content-Type: application/json", "Content-Length: 2"];
  socket.write(`${method} HTTP://auth.example:80${path} HTTP/1.1\r\n${head.join("\r\n")}\r\n\r\n{}`);
  const answered = await text(socket);
  expect(answered).toMatch(/^HTTP\/1.1 200 /);
  expect(answered).toContain(answer);
});
