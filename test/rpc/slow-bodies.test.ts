import { once } from "node:events";
import { request as requestPlain } from "node:http";
import { connect } from "node:http2";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { type TestDatabase, createDatabase } from "../support/database.ts";
import { serveTls } from "../support/serve-tls.ts";
import { serve } from "../support/serve.ts";

const PATH = "/service_identity.v1.ServiceIdentityService/AuthenticateService";
const CALL_TIMEOUT = { CALL_TIMEOUT: "300ms" };

/** That it is cut off is an error to who sent it. */
const closed = (request: NodeJS.EventEmitter) => new Promise((resolve) => request.once("close", resolve));

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database.drop());

test("a request of HTTP/1.1 whose message does not end in CALL_TIMEOUT is cut off", async () => {
  const server = await serve(database.url, CALL_TIMEOUT);
  onTestFinished(() => server.stop());
  const headers = { "content-type": "application/json", "content-length": "100" };
  const target = { port: server.httpPort, host: "127.0.0.1", path: PATH, method: "POST", headers, agent: false };
  const request = requestPlain(target);
  request.on("error", () => undefined);
  const began = performance.now();
  request.write("{");
  await closed(request);
  expect(performance.now() - began).toBeGreaterThan(250);
});

test("so is one of HTTP/2, and its connection serves on", async () => {
  const { server, ca } = await serveTls(database.url, CALL_TIMEOUT);
  onTestFinished(() => server.stop());
  const session = connect(`https://localhost:${server.httpPort}`, { ca });
  onTestFinished(() => session.destroy());
  const slow = session.request({ ":method": "POST", ":path": PATH, "content-type": "application/json" });
  slow.on("error", () => undefined);
  slow.write("{");
  await closed(slow);
  const whole = session.request({ ":method": "POST", ":path": PATH, "content-type": "application/json" });
  whole.end("{}");
  const [{ ":status": status }] = (await once(whole, "response")) as [Record<string, unknown>];
  expect(status).toBe(400);
  expect(session.remoteSettings.maxConcurrentStreams).toBeLessThan(10_000);
});
