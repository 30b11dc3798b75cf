import { once } from "node:events";
import { connect, constants } from "node:http2";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import type { RunningServer } from "../../src/server.ts";
import { type TestDatabase, createRootedDatabase } from "../support/database.ts";
import { frame } from "../support/frames.ts";
import { PATHS, freshToken } from "../support/raw-grpc.ts";
import { serve } from "../support/serve.ts";
import { serveTls } from "../support/serve-tls.ts";

/** Three times what Node lets one connection give up at once unless it is told otherwise. */
const GIVEN_UP = 3_000;
/** How many are given up together: few, and nearly as many as a connection may have. */
const ROUNDS = [100, 900];

const GRPC = { "content-type": "application/grpc", te: "trailers" };
const CONNECT = { "content-type": "application/connect+proto", "connect-protocol-version": "1" };

let database: TestDatabase;
let plain: RunningServer;
let secure: RunningServer;
let ca: string;
let authorization: string;

beforeAll(async () => {
  database = await createRootedDatabase();
  plain = await serve(database.url);
  ({ server: secure, ca } = await serveTls(database.url));
  authorization = await freshToken(plain);
});
afterAll(async () => {
  await Promise.all([plain.stop(), secure.stop()]);
  await database.drop();
});

const ports = [
  { name: "gRPC", url: () => `http://127.0.0.1:${plain.grpcPort}`, protocol: GRPC },
  { name: "gRPC over TLS", url: () => `https://localhost:${secure.grpcPort}`, protocol: GRPC },
  { name: "Connect over TLS", url: () => `https://localhost:${secure.httpPort}`, protocol: CONNECT },
] as const;

const cases = ports.flatMap((port) => ROUNDS.map((round) => ({ ...port, round })));

test.each(cases)("$name: callers who give up $round calls, again and again, end nobody else's", async (each) => {
  const session = connect(each.url(), { ca });
  const goaways: number[] = [];
  session.on("goaway", (code: number) => goaways.push(code)).on("error", () => undefined);
  onTestFinished(() => session.destroy());
  await once(session, "remoteSettings");
  const begin = (path: string) => {
    const stream = session.request({ ":method": "POST", ":path": path, authorization, ...each.protocol });
    return stream.on("error", () => undefined).resume();
  };

  /** All that was sent before has been taken in. */
  const arrived = () => new Promise((resolve) => session.ping(resolve));

  const watch = begin(PATHS.WATCH).end(frame(""));
  for (let begun = 0; begun < GIVEN_UP && goaways.length === 0; begun += each.round) {
    const calls = Array.from({ length: each.round }, () => begin(PATHS.WATCH));
    await arrived();
    for (const call of calls) call.close(constants.NGHTTP2_CANCEL);
  }
  await arrived();
  await arrived();
  // Not whether it goes on: where all of this is slow, its own statement may be too late.
  expect({ goaways, reset: watch.rstCode, open: !session.closed }).toEqual({ goaways: [], reset: 0, open: true });
});

test.each(ports)(
  "$name: callers are told how large their headers may be, before they end everybody's calls",
  async ({ url }) => {
    const session = connect(url(), { ca });
    onTestFinished(() => session.destroy());
    await once(session, "remoteSettings");
    expect(session.remoteSettings).toMatchObject({ maxHeaderListSize: 65_536, maxConcurrentStreams: 1_000 });
  },
);
