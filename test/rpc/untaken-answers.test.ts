import { once } from "node:events";
import { type ServerHttp2Stream, connect, constants, createServer } from "node:http2";
import { expect, onTestFinished, test } from "vitest";
import { giveUpUntaken } from "../../src/rpc/untaken-answers.ts";
import { createDatabase } from "../support/database.ts";
import { frame } from "../support/frames.ts";
import { listenOn } from "../support/ports.ts";
import { PATHS, freshToken, openGrpc, sendGrpc, serveRaw } from "../support/raw-grpc.ts";
import { serveTls } from "../support/serve-tls.ts";
import { timersOf } from "../support/timers.ts";

const { LIST, CHECK, HEALTH_WATCH, AUTHENTICATE } = PATHS;

test.each([
  ["with a call that has no deadline, after CALL_TIMEOUT", LIST, "300ms", {}],
  ["with a health check that has no deadline, after CALL_TIMEOUT", CHECK, "300ms", {}],
  ["with a call, after its caller's deadline", LIST, "10m", { "grpc-timeout": "500m" }],
  ["with a stream, after its caller's deadline", HEALTH_WATCH, "10m", { "grpc-timeout": "500m" }],
])("gRPC: an answer of which nobody takes anything is given up %s", async (_, path, CALL_TIMEOUT, deadline) => {
  const { server } = await serveRaw({ CALL_TIMEOUT });
  const authorization = await freshToken(server);
  const session = openGrpc(server, { settings: { initialWindowSize: 0 } });
  const answer = await sendGrpc(session, path, frame(""), true, { authorization, ...deadline });
  expect(answer).toMatchObject({ status: undefined, rst: constants.NGHTTP2_CANCEL });
  // A refusal needs no window.
  expect(await sendGrpc(session, LIST, frame(""), true)).toMatchObject({ status: "16", rst: 0 });
});

/** Has calls go on until the answer is there. */
const meanwhile = async <Answer>(answered: Promise<Answer>, call: () => Promise<unknown>): Promise<Answer> => {
  const over = new AbortController();
  void answered.finally(() => over.abort());
  while (!over.signal.aborted) await call();
  return await answered;
};

test("gRPC: so it is where its connection is busy with other calls", async () => {
  const { server } = await serveRaw({ CALL_TIMEOUT: "300ms" });
  const authorization = await freshToken(server);
  const session = openGrpc(server, { settings: { initialWindowSize: 0 } });
  const untaken = sendGrpc(session, LIST, frame(""), true, { authorization });
  const answer = await meanwhile(untaken, () => sendGrpc(session, LIST, frame(""), true));
  expect(answer).toMatchObject({ status: undefined, rst: constants.NGHTTP2_CANCEL });
});

test.each([
  ["a call", { ":method": "POST", ":path": AUTHENTICATE, "content-type": "application/json" }, "{}"],
  ["what has no message", { ":path": "/metrics" }, undefined],
])("HTTP/2: so it is with that to %s", async (_, headers, message) => {
  const database = await createDatabase();
  const { server, ca } = await serveTls(database.url, { CALL_TIMEOUT: "300ms" });
  const session = connect(`https://localhost:${server.httpPort}`, { ca, settings: { initialWindowSize: 0 } });
  onTestFinished(async () => {
    session.destroy();
    await server.stop();
    await database.drop();
  });
  const untaken = session.request(headers).on("error", () => undefined);
  if (message !== undefined) untaken.end(message);
  const call = async () => {
    const head = session.request({ ":method": "HEAD", ":path": "/healthz" }).resume();
    await once(head, "close");
  };
  await meanwhile(once(untaken, "close"), call);
  expect(untaken.rstCode).toBe(constants.NGHTTP2_CANCEL);
});

test("nothing waits for an answer to be taken by who has gone", async () => {
  const timers = timersOf(12_340);
  const server = createServer();
  const session = connect(`http://127.0.0.1:${await listenOn(server)}`);
  onTestFinished(() => {
    session.destroy();
    server.close();
  });
  const given = session.request().on("error", () => undefined);
  const [stream] = (await once(server, "stream")) as [ServerHttp2Stream];
  stream.on("error", () => undefined);
  given.close(constants.NGHTTP2_CANCEL);
  await once(stream, "close");
  giveUpUntaken(stream, 1_234);
  expect(timers()).toEqual([]);
});
