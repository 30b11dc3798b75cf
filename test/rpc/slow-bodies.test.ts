import { once } from "node:events";
import { Agent, type IncomingMessage, createServer, request as requestPlain } from "node:http";
import { connect, constants } from "node:http2";
import { connect as connectTcp } from "node:net";
import { PassThrough } from "node:stream";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import type { HttpRequest } from "../../src/rpc/http.ts";
import { bodyOf, boundRequest } from "../../src/rpc/request-bodies.ts";
import type { RunningServer } from "../../src/server.ts";
import { type TestDatabase, createDatabase } from "../support/database.ts";
import { frame } from "../support/frames.ts";
import { type LoggedLines, loggedLines } from "../support/logged-lines.ts";
import { listenOn } from "../support/ports.ts";
import { serveTls } from "../support/serve-tls.ts";
import { serve } from "../support/serve.ts";
import { countTimers } from "../support/timers.ts";

const PATH = "/service_identity.v1.ServiceIdentityService/AuthenticateService";
const TIMEOUT_MS = 300;
const CALL_TIMEOUT = { CALL_TIMEOUT: `${TIMEOUT_MS}ms` };

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database.drop());

describe("HTTP/1.1", () => {
  let server: RunningServer;
  let logged: LoggedLines;
  const agent = new Agent({ keepAlive: true });
  beforeAll(async () => {
    logged = loggedLines();
    server = await serve(database.url, CALL_TIMEOUT, logged.log);
  });
  afterAll(() => server.stop());
  afterAll(() => agent.destroy());

  /** Begins a message that never ends. */
  const begin = async (headers: Readonly<Record<string, string>>, start: string | Buffer) => {
    const target = { port: server.httpPort, host: "127.0.0.1", path: PATH, method: "POST", headers, agent };
    const request = requestPlain(target);
    request.on("error", () => undefined);
    request.write(start);
    const closed = once(request, "close");
    const [response] = (await once(request, "response")) as [IncomingMessage];
    return { response, body: await text(response), closed };
  };

  const json = { "content-type": "application/json", "content-length": "100" };
  const web = { "content-type": "application/grpc-web+proto" };

  test.each([
    ["a caller's deadline", { ...json, "connect-timeout-ms": "100" }, "{", "deadline_exceeded"],
    ["CALL_TIMEOUT", json, "{", "deadline_exceeded"],
    [
      "gRPC-Web: a caller's deadline",
      { ...web, "grpc-timeout": "100m" },
      frame("{").subarray(0, 5),
      "grpc-status: 4\r\n",
    ],
    ["gRPC-Web: CALL_TIMEOUT", web, frame("{").subarray(0, 5), "grpc-status: 4\r\n"],
  ])(
    "%s that passes while the message comes is answered, and its connection cut off",
    async (id, headers, start, says) => {
      const began = performance.now();
      const { body, closed } = await begin({ ...headers, "x-request-id": id }, start);
      expect(body).toContain(says);
      await expect.poll(() => logged.of(id)).toMatchObject([{ code: "DeadlineExceeded", reason: "DEADLINE" }]);
      await closed;
      expect(performance.now() - began).toBeGreaterThan(TIMEOUT_MS);
    },
  );
});

test("HTTP/1.1: a connection whose call was refused before its message was read serves on", async () => {
  const server = await serve(database.url, CALL_TIMEOUT);
  onTestFinished(() => server.stop());
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  onTestFinished(() => agent.destroy());
  const call = async (path: string) => {
    const headers = { "content-type": "application/json", authorization: "Bearer x" };
    const request = requestPlain({ port: server.httpPort, host: "127.0.0.1", path, method: "POST", headers, agent });
    request.end("{}");
    const [response] = (await once(request, "response")) as [IncomingMessage];
    await text(response);
    return request.reusedSocket;
  };
  const began = performance.now();
  await call("/org.v1.OrgService/ListTenants");
  await call("/nowhere");
  // Longer than its message may come for, by a second and CALL_TIMEOUT.
  while (performance.now() - began < TIMEOUT_MS + 1_500) expect(await call(PATH)).toBe(true);
});

test("who reads on in a message that was given up is told why at once", async () => {
  const request = new PassThrough() as unknown as HttpRequest;
  const why = new Error("too late");
  bodyOf(request).giveUp(why);
  await expect(request[Symbol.asyncIterator]().next()).rejects.toBe(why);
});

test.each([
  ["was read", PATH, {}],
  ["was refused before it was read", "/org.v1.OrgService/ListTenants", { authorization: "Bearer x" }],
])("nothing waits for more of a message that has come, and %s", async (_, path, headers) => {
  const server = await serve(database.url);
  onTestFinished(() => server.stop());
  const request = { method: "POST", headers: { "content-type": "application/json", ...headers }, body: "{}" };
  const call = async () => (await fetch(`http://127.0.0.1:${server.httpPort}${path}`, request)).text();
  await call();
  const before = countTimers();
  for (let n = 0; n < 50; n++) await call();
  await expect.poll(countTimers).toBeLessThan(before + 25);
});

test("so it is with HTTP/2, whose connection serves on", async () => {
  const { server, ca } = await serveTls(database.url, CALL_TIMEOUT);
  onTestFinished(() => server.stop());
  const session = connect(`https://localhost:${server.httpPort}`, { ca });
  onTestFinished(() => session.destroy());
  const slow = session.request({ ":method": "POST", ":path": PATH, "content-type": "application/json" });
  let body = "";
  slow.setEncoding("utf8").on("data", (chunk: string) => (body += chunk));
  slow.write("{");
  await once(slow, "close");
  expect(body).toContain("deadline_exceeded");
  const whole = session.request({ ":method": "POST", ":path": PATH, "content-type": "application/json" });
  whole.end("{}");
  const [{ ":status": status }] = (await once(whole, "response")) as [Record<string, unknown>];
  expect(status).toBe(400);
  expect(session.remoteSettings.maxConcurrentStreams).toBeLessThan(10_000);
});

test("HTTP/2: a call whose message does not come before its caller's deadline is cut off with an error", async () => {
  const { server, ca } = await serveTls(database.url, CALL_TIMEOUT);
  onTestFinished(() => server.stop());
  const session = connect(`https://localhost:${server.httpPort}`, { ca });
  onTestFinished(() => session.destroy());
  const headers = {
    ":method": "POST",
    ":path": PATH,
    "content-type": "application/json",
    "connect-timeout-ms": "60000",
  };
  const slow = session.request(headers);
  slow.write("{");
  await once(slow, "close");
  expect(slow.rstCode).toBe(constants.NGHTTP2_CANCEL);
});

test("HTTP/2: an answer of which nobody takes anything is given up, and its connection serves on", async () => {
  const { server, ca } = await serveTls(database.url, CALL_TIMEOUT);
  onTestFinished(() => server.stop());
  const session = connect(`https://localhost:${server.httpPort}`, { ca, settings: { initialWindowSize: 0 } });
  onTestFinished(() => session.destroy());
  const post = () => {
    const stream = session.request({ ":method": "POST", ":path": PATH, "content-type": "application/json" });
    return stream.on("error", () => undefined).end("{}");
  };
  const unread = post();
  await once(unread, "close");
  expect(unread.rstCode).toBe(constants.NGHTTP2_CANCEL);
  const [{ ":status": status }] = (await once(post(), "response")) as [Record<string, unknown>];
  expect(status).toBe(400);
});

const METRICS = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";

test("HTTP/1.1: with such an answer its connection is ended", async () => {
  const server = await serve(database.url, CALL_TIMEOUT);
  onTestFinished(() => server.stop());
  const peer = connectTcp(server.httpPort!, "127.0.0.1");
  onTestFinished(() => void peer.destroy());
  peer.on("error", () => undefined).pause();
  // More than the system keeps of what is not read.
  const ask = () => {
    peer.write(METRICS);
    return peer.destroyed;
  };
  await expect.poll(ask, { interval: 10, timeout: 30_000 }).toBe(true);
});

const PREFLIGHT = "OPTIONS /metrics HTTP/1.1\r\nhost: x\r\norigin: https://x.example\r\n\r\n";
const EXPECTANT = METRICS.replace("host", "expect: miracles\r\nhost");

test.each([
  ["none", "answers", METRICS, 0],
  ["none", "answers to what is not expected", EXPECTANT, 0],
  ["no second one", "answers that are made at once", PREFLIGHT, 1],
])("HTTP/1.1: %s is given to who asks for thousands of %s in one go", async (_most, _what, asked, most) => {
  const server = await serve(database.url, { CORS_ORIGINS: "https://x.example" });
  onTestFinished(() => server.stop());
  const ask = async (requests: number) => {
    const peer = connectTcp(server.httpPort!, "127.0.0.1");
    onTestFinished(() => void peer.destroy());
    peer.on("error", () => undefined).write(asked.repeat(requests));
    let answers = 0;
    peer.on("data", (data: Buffer) => (answers += data.toString().split("HTTP/1.1 ").length - 1));
    await Promise.race([once(peer, "close"), expect.poll(() => answers).toBe(requests)]);
    return answers;
  };
  expect(await ask(32)).toBe(32);
  expect(await ask(1_000)).toBeLessThanOrEqual(most);
});

test("HTTP/1.1: a stream in which nothing happens lasts, also where it was asked for behind a call", async () => {
  const server = createServer((request, response) => {
    boundRequest(request, response, TIMEOUT_MS);
    if (request.url === "/call") setImmediate(() => response.end("answered"));
  });
  onTestFinished(() => void server.close());
  const peer = connectTcp(await listenOn(server), "127.0.0.1");
  onTestFinished(() => void peer.destroy());
  peer.resume().write(["/call", "/stream"].map((path) => `GET ${path} HTTP/1.1\r\nhost: x\r\n\r\n`).join(""));
  await sleep(3 * TIMEOUT_MS);
  expect(peer.readyState).toBe("open");
});
