import { randomUUID } from "node:crypto";
import diagnostics from "node:diagnostics_channel";
import { once } from "node:events";
import { type ServerHttp2Stream, connect, constants } from "node:http2";
import { connect as connectTcp } from "node:net";
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import type { RunningServer } from "../../src/server.ts";
import { type TestDatabase, createRootedDatabase } from "../support/database.ts";
import { frame } from "../support/frames.ts";
import { type LoggedLines, loggedLines } from "../support/logged-lines.ts";
import { PATHS, freshToken } from "../support/raw-grpc.ts";
import { serve } from "../support/serve.ts";
import { serveTls } from "../support/serve-tls.ts";
import { clientsOf } from "../support/service.ts";

/** Three times what Node lets one connection give up at once unless it is told otherwise. */
const GIVEN_UP = 3_000;
/** How many are given up together: few, and nearly as many as a connection may have. */
const ROUNDS = [100, 900];

const GRPC = { "content-type": "application/grpc", te: "trailers" };
const CONNECT = { "content-type": "application/connect+proto", "connect-protocol-version": "1" };

let database: TestDatabase;
let plain: RunningServer;
let secure: RunningServer;
let logged: LoggedLines;
let ca: string;
let authorization: string;

beforeAll(async () => {
  database = await createRootedDatabase();
  logged = loggedLines();
  plain = await serve(database.url, {}, logged.log);
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

/** Resets calls in the turn of the loop in which they come, before anybody is told of them: a peer's reset may be read there. */
const resetAtOnce = () => {
  const reset = (message: unknown) => (message as { readonly stream: ServerHttp2Stream }).stream.destroy();
  diagnostics.subscribe("http2.server.stream.created", reset);
  onTestFinished(() => void diagnostics.unsubscribe("http2.server.stream.created", reset));
};

const headersOfCalls = [
  ["a method", { ":path": PATHS.LIST }],
  ["an unknown method", { ":path": "/no.Such/Method" }],
  ["another content type", { ":path": PATHS.LIST, "content-type": "text/plain" }],
  ["a message that is to be asked for", { ":path": PATHS.LIST, expect: "100-continue" }],
] as const;

test.each(ports.flatMap((port) => headersOfCalls.map(([what, headers]) => ({ ...port, what, headers }))))(
  "$name: a call of $what that is given up as it comes ends nothing",
  async ({ url, protocol, headers }) => {
    const onFault = vi.fn<(error: Error) => void>();
    process.on("uncaughtExceptionMonitor", onFault);
    onTestFinished(() => void process.off("uncaughtExceptionMonitor", onFault));
    const session = connect(url(), { ca });
    onTestFinished(() => session.destroy());
    await once(session, "remoteSettings");
    resetAtOnce();
    const stream = session.request({ ":method": "POST", ...protocol, ...headers });
    await new Promise((resolve) => stream.on("error", () => undefined).once("close", resolve));
    expect(onFault).not.toHaveBeenCalled();
  },
);

test("HTTP/1.1: streams end with their connection, also one of which much waits behind another", async () => {
  const { org } = clientsOf("grpc", plain)({ authorization });
  const { tenant } = await org.createTenant({ label: "watched" });
  const { tenantId } = tenant!;
  const { events } = await org.listAuditEvents({ tenantId });
  const nodes = Array.from({ length: 1_000 }, (_, n) => ({ nodeId: randomUUID(), nodeType: "shop", label: `${n}` }));
  await org.batchCreateNodes({ tenantId, nodes });

  const body = frame(JSON.stringify({ tenantId, afterAuditId: events[0]!.auditId }));
  const ask = (id: string) => {
    const headers = { host: "x", authorization, "x-request-id": id, "content-type": "application/connect+json" };
    const lines = Object.entries({ ...headers, "content-length": body.length }).map((header) => header.join(": "));
    return Buffer.concat([Buffer.from([`POST ${PATHS.WATCH} HTTP/1.1`, ...lines, "\r\n"].join("\r\n")), body]);
  };
  const ids = ["before", "behind"];
  const peer = connectTcp(plain.httpPort!, "127.0.0.1");
  let read = "";
  peer.on("data", (data: Buffer) => (read += data.toString())).write(Buffer.concat(ids.map(ask)));
  await expect.poll(() => read.split("org.node.create").length).toBe(nodes.length + 1);
  peer.resetAndDestroy();
  for (const id of ids) await expect.poll(() => logged.of(id)).toMatchObject([{ reason: "CANCELLED" }]);
});
