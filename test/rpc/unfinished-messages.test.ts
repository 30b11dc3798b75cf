import { connect, constants } from "node:http2";
import { beforeAll, expect, onTestFinished, test } from "vitest";
import type { RunningServer } from "../../src/server.ts";
import { frame } from "../support/frames.ts";
import { watchHealth } from "../support/health-client.ts";
import type { LoggedLines } from "../support/logged-lines.ts";
import { PATHS, openGrpc, sendGrpc as call, serveRaw } from "../support/raw-grpc.ts";

const { AUTHENTICATE, CHECK, REFLECT } = PATHS;
const DEADLINE_EXCEEDED = "4";
/** The beginning of a message of one byte, which does not come. */
const UNFINISHED = frame("x").subarray(0, 5);

let server: RunningServer;
let logged: LoggedLines;
beforeAll(async () => {
  ({ server, logged } = await serveRaw({ CALL_TIMEOUT: "300ms" }));
});

const open = () => openGrpc(server);

test.each([
  ["an RPC of ours", AUTHENTICATE, UNFINISHED],
  ["one whose message is there, and whose stream is not ended", AUTHENTICATE, frame("")],
  ["a health check", CHECK, UNFINISHED],
  ["reflection", REFLECT, UNFINISHED],
])(
  "%s is answered once CALL_TIMEOUT has passed, its stream closed, and its connection serves on",
  async (_, path, bytes) => {
    const session = open();
    expect(await call(session, path, bytes, false)).toMatchObject({ status: DEADLINE_EXCEEDED, rst: 0 });
    expect(await call(session, CHECK, frame(""), true)).toMatchObject({ status: "0", rst: 0 });
  },
);

test("reflection whose answer nobody takes is cut off", async () => {
  const session = connect(`http://127.0.0.1:${server.grpcPort}`, { settings: { initialWindowSize: 0 } });
  onTestFinished(() => session.destroy());
  // list_services: ""
  const answer = await call(session, REFLECT, frame(Buffer.from([0x3a, 0x00])), false);
  expect(answer).toMatchObject({ status: undefined, rst: constants.NGHTTP2_CANCEL });
});

test("so it is where the caller's own deadline passes first", async () => {
  const answer = await call(open(), AUTHENTICATE, UNFINISHED, false, { "grpc-timeout": "50m" });
  expect(answer).toMatchObject({ status: DEADLINE_EXCEEDED, rst: 0 });
});

test("what was refused has its reason and its line, under the caller's request id", async () => {
  const id = { "x-request-id": "unfinished" };
  const { details } = await call(open(), AUTHENTICATE, UNFINISHED, false, id);
  expect(Buffer.from(String(details), "base64").toString("latin1")).toContain("DEADLINE");
  expect(logged.of("unfinished")).toMatchObject([{ code: "DeadlineExceeded", reason: "DEADLINE" }]);
});

test("a stream that has begun lasts for longer", async () => {
  const watch = watchHealth(server.grpcPort, "");
  onTestFinished(() => watch.cancel());
  await expect.poll(() => watch.heard).toEqual(["SERVING"]);
  for (let round = 0; round < 2; round++) await call(open(), AUTHENTICATE, UNFINISHED, false);
  expect(await Promise.race([watch.ended, Promise.resolve("under way")])).toBe("under way");
});
