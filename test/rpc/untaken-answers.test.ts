import { constants } from "node:http2";
import { expect, test } from "vitest";
import { frame } from "../support/frames.ts";
import { PATHS, freshToken, openGrpc, sendGrpc, serveRaw } from "../support/raw-grpc.ts";

const { LIST, HEALTH_WATCH } = PATHS;

test.each([
  ["with a call that has no deadline, after CALL_TIMEOUT", LIST, "300ms", {}],
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
