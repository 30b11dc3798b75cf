import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { setImmediate } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import type { RunningServer } from "../../src/server.ts";
import { type TestDatabase, createRootedDatabase } from "../support/database.ts";
import { HTTP2_PREFACE, frame } from "../support/frames.ts";
import { PATHS, freshToken } from "../support/raw-grpc.ts";
import { serveTls } from "../support/serve-tls.ts";
import { clientsOf } from "../support/service.ts";
import { serve } from "../support/serve.ts";

let database: TestDatabase;
let plain: RunningServer;
let server: RunningServer;
let ca: string;
beforeAll(async () => {
  database = await createRootedDatabase();
  plain = await serve(database.url);
  ({ server, ca } = await serveTls(database.url, { GRPC_CONNECTION_IDLE: "1s" }));
});
afterAll(async () => {
  await Promise.all([plain.stop(), server.stop()]);
  await database.drop();
});

const open = () => {
  const session = connectHttp2(`https://localhost:${server.httpPort}`, { ca });
  session.on("error", () => undefined);
  onTestFinished(() => session.destroy());
  return session;
};

test("HTTP/2 on the HTTP port: a connection without requests ends after GRPC_CONNECTION_IDLE, with one it goes on", async () => {
  const { org } = clientsOf("grpc", plain)({});
  const headers = { authorization: await freshToken(plain) };
  const type = { "content-type": "application/connect+json" };
  const watched = open().request({ ":method": "POST", ":path": PATHS.WATCH, ...type, ...headers });
  let heard = "";
  watched.setEncoding("utf8").on("data", (text: string) => (heard += text));
  watched.end(frame("{}"));

  const [silent, asked] = [open(), open()];
  const request = asked.request({ ":path": "/healthz" });
  request.resume();
  await once(request, "end");
  for (const session of [silent, asked]) await expect.poll(() => session.closed).toBe(true);

  const tell = async () => {
    await org.createTenant({ label: "heard of" }, { headers });
    return heard;
  };
  await expect.poll(tell).toContain("org.tenant.create");
});

test.each([
  ["CONNECT", { ":method": "CONNECT", ":authority": "elsewhere" }],
  ["an expectation", { ":method": "POST", ":path": "/metrics", expect: "miracles" }],
])("HTTP/2 on the HTTP port: who never ends his request keeps no connection by it: %s", async (_, headers) => {
  const session = open();
  const request = session.request(headers, { endStream: false });
  await once(request.resume(), "response");
  await expect.poll(() => session.closed).toBe(true);
});

test("HTTP/2 on the HTTP port: a call that comes as its connection ends is refused, and not begun", async () => {
  const session = open();
  await once(session, "remoteSettings");
  const type = { "content-type": "application/json" };
  const call = session.request({ ":method": "POST", ":path": "/org.v1.OrgService/CreateTenant", ...type });
  const ended = once(call.resume(), "end");
  call.end(JSON.stringify({ label: "sent again elsewhere" }));
  await setImmediate();
  // It has left, and is read in the turn of the loop that finds the connection idle.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1_100);
  await expect(ended).rejects.toThrow("NGHTTP2_REFUSED_STREAM");

  const request = open().request({ ":path": "/metrics" }).setEncoding("utf8");
  let metrics = "";
  for await (const text of request) metrics += String(text);
  expect(metrics).toContain("grpc_server_handled_total");
  expect(metrics).not.toContain("CreateTenant");
});

test("HTTP/2 on the HTTP port: a peer that does not close an idle connection is cut off", async () => {
  const to = { port: server.httpPort!, host: "localhost", ca, ALPNProtocols: ["h2"], allowHalfOpen: true };
  const peer = connectTls(to);
  onTestFinished(() => void peer.destroy());
  peer.on("error", () => undefined).resume();
  peer.write(HTTP2_PREFACE);
  await once(peer, "end");
  // What is sent to nobody is what tells.
  const isCutOff = () => {
    peer.write(".");
    return peer.destroyed;
  };
  await expect.poll(isCutOff).toBe(true);
});
