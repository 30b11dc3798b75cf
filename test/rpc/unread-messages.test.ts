import { gzipSync } from "node:zlib";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import type { RunningServer } from "../../src/server.ts";
import { ANONYMOUS_MAX_BYTES } from "../../src/rpc/message-limits.ts";
import type { TestDatabase } from "../support/database.ts";
import { frame } from "../support/frames.ts";
import type { LoggedLines } from "../support/logged-lines.ts";
import { PATHS, freshToken, openGrpc, sendGrpc, serveRaw } from "../support/raw-grpc.ts";
import { serve } from "../support/serve.ts";

const { LIST, WATCH, AUTHENTICATE, CHECK, REFLECT } = PATHS;

const INVALID_ARGUMENT = "3";
const RESOURCE_EXHAUSTED = "8";
const UNIMPLEMENTED = "12";
const UNAUTHENTICATED = "16";

const MESSAGE_MAX = 200_000;
const COMPRESSED = 1;
const GZIP = { "grpc-encoding": "gzip" };

let database: TestDatabase;
let server: RunningServer;
let logged: LoggedLines;
let authorization: string;
beforeAll(async () => {
  ({ database, server, logged } = await serveRaw({ MESSAGE_MAX_BYTES: String(MESSAGE_MAX) }));
  authorization = await freshToken(server);
});

const zipped = (bytes: number) => frame(gzipSync(Buffer.alloc(bytes)), COMPRESSED);
const NOT_ZIPPED = frame("no gzip", COMPRESSED);

/** Answers as the server does, and its connection still serves. */
const answerTo = async (path: string, bytes: Buffer, headers: Readonly<Record<string, string>> = {}) => {
  const session = openGrpc(server);
  const answer = await sendGrpc(session, path, bytes, false, headers);
  expect(answer.rst).toBe(0);
  expect(await sendGrpc(session, CHECK, frame(""), true)).toMatchObject({ status: "0", rst: 0 });
  return answer;
};

describe("gRPC: the message of who may not call is not read", () => {
  test.each([
    ["one that does not come", LIST, frame("x").subarray(0, 5), {}],
    ["one too large", LIST, frame(Buffer.alloc(MESSAGE_MAX + 1)), {}],
    ["one that cannot be decompressed", LIST, NOT_ZIPPED, GZIP],
    ["one compressed as nobody can read it", WATCH, NOT_ZIPPED, { "grpc-encoding": "rot13" }],
  ])("%s", async (_, path, bytes, headers) => {
    const answer = await answerTo(path, bytes, { authorization: "Bearer x", ...headers });
    expect(answer.status).toBe(UNAUTHENTICATED);
  });
});

describe("gRPC: of a sender whom nobody knows more than a little is not read", () => {
  test.each([
    ["an anonymous RPC", AUTHENTICATE],
    ["a health check", CHECK],
    ["reflection", REFLECT],
  ])("by %s", async (_, path) => {
    const large = frame(Buffer.alloc(ANONYMOUS_MAX_BYTES + 1));
    expect((await answerTo(path, large)).status).toBe(RESOURCE_EXHAUSTED);
    expect((await answerTo(path, zipped(ANONYMOUS_MAX_BYTES + 1), GZIP)).status).toBe(RESOURCE_EXHAUSTED);
  });

  test("nor more than MESSAGE_MAX_BYTES, where that is less", async () => {
    const small = await serve(database.url, { MESSAGE_MAX_BYTES: "2048" });
    onTestFinished(() => small.stop());
    for (const path of [AUTHENTICATE, CHECK]) {
      const answer = await sendGrpc(openGrpc(small), path, frame(Buffer.alloc(2_049)), true);
      expect(answer.status).toBe(RESOURCE_EXHAUSTED);
    }
  });

  test("over HTTP too", async () => {
    const response = await fetch(`http://127.0.0.1:${server.httpPort}${AUTHENTICATE}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ key: "x".repeat(ANONYMOUS_MAX_BYTES) }),
    });
    expect(await response.json()).toMatchObject({ code: "resource_exhausted" });
  });
});

describe("gRPC: what cannot be read of a caller who may call is refused under his request id, and logged", () => {
  test.each([
    ["too large", RESOURCE_EXHAUSTED, "ResourceExhausted", frame(Buffer.alloc(MESSAGE_MAX + 1)), {}],
    ["too large once it is decompressed", RESOURCE_EXHAUSTED, "ResourceExhausted", zipped(MESSAGE_MAX + 1), GZIP],
    ["not to be decompressed", INVALID_ARGUMENT, "InvalidArgument", NOT_ZIPPED, GZIP],
    ["compressed by another way", UNIMPLEMENTED, "Unimplemented", NOT_ZIPPED, { "grpc-encoding": "rot13" }],
    ["two messages", UNIMPLEMENTED, "Unimplemented", Buffer.concat([frame(""), frame("")]), {}],
    ["a broken deadline", INVALID_ARGUMENT, "InvalidArgument", frame(""), { "grpc-timeout": "soon" }],
  ])("%s", async (requestId, status, code, bytes, headers) => {
    const answer = await answerTo(LIST, bytes, { authorization, "x-request-id": requestId, ...headers });
    expect(answer).toMatchObject({ status, requestId });
    expect(logged.of(requestId)).toMatchObject([{ code }]);
  });

  test("where it is his fault, with its reason", async () => {
    const { details } = await answerTo(LIST, NOT_ZIPPED, { authorization, ...GZIP });
    expect(Buffer.from(String(details), "base64").toString("latin1")).toContain("INVALID_REQUEST");
  });
});
