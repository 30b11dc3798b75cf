import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { get } from "node:https";
import { type AddressInfo, type Socket, connect as connectTcp, createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { sql } from "slonik";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { administer } from "../support/admin.ts";
import { type TestDatabase, createDatabase } from "../support/database.ts";
import { HTTP2_PREFACE, frame } from "../support/frames.ts";
import { isOpen } from "../support/ports.ts";
import { PATHS, beginGrpc, freshToken, openGrpc, sendGrpc, serveRaw } from "../support/raw-grpc.ts";
import { serveTls } from "../support/serve-tls.ts";
import { serve } from "../support/serve.ts";
import { handshake } from "../support/tls-ports.ts";

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database.drop());

test("a connection on which nothing goes on is closed after GRPC_CONNECTION_IDLE", async () => {
  const server = await serve(database.url, { GRPC_CONNECTION_IDLE: "1s" });
  onTestFinished(() => server.stop());
  const began = performance.now();
  await once(openGrpc(server), "close");
  expect(performance.now() - began).toBeGreaterThan(900);
});

test("what has not ended GRPC_CONNECTION_AGE_GRACE after its connection's age is cut off", async () => {
  const env = { GRPC_CONNECTION_AGE: "1s", GRPC_CONNECTION_AGE_GRACE: "1s", CALL_TIMEOUT: "10m" };
  const server = await serve(database.url, env);
  onTestFinished(() => server.stop());
  const session = openGrpc(server);
  session.on("error", () => undefined);
  const began = performance.now();
  const { stream } = beginGrpc(session, PATHS.AUTHENTICATE);
  stream.on("error", () => undefined).write(frame("x").subarray(0, 5));
  await new Promise((resolve) => stream.once("close", resolve));
  expect(performance.now() - began).toBeGreaterThan(1_800);
});

/** What a client of HTTP/2 says first, and that it begins no more. */
const GOODBYE = Buffer.concat([HTTP2_PREFACE, Buffer.from([0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]);

/** Whether nobody is there any more: only what is sent tells. Asked rarely, since who speaks is waited for longer. */
const expectCutOff = (peer: Socket) => {
  const isCutOff = async () => {
    // The first is answered that nobody is there, and the second fails for it.
    for (let times = 0; times < 2; times++) {
      peer.write(GOODBYE);
      await sleep(100);
    }
    return peer.destroyed;
  };
  return expect.poll(isCutOff, { interval: 6_000, timeout: 30_000 }).toBe(true);
};

test.each(["gRPC", "HTTP"])("%s: a peer who leaves his side of an ended connection open is cut off", async (name) => {
  const { server, ca } = await serveTls(database.url);
  onTestFinished(() => server.stop());
  const port = name === "gRPC" ? server.grpcPort : server.httpPort!;
  const to = { port, host: "localhost", ca, ALPNProtocols: ["h2"], allowHalfOpen: true };
  const peer = connectTls(to);
  onTestFinished(() => void peer.destroy());
  peer.on("error", () => undefined).resume();
  peer.write(GOODBYE);
  await once(peer, "end");
  await expectCutOff(peer);
});

test("a peer who leaves an idle connection open holds up no shutdown", async () => {
  const server = await serve(database.url, { GRPC_CONNECTION_IDLE: "1s" });
  const peer = connectTcp({ port: server.grpcPort, host: "127.0.0.1", allowHalfOpen: true });
  onTestFinished(() => void peer.destroy());
  peer.on("error", () => undefined).resume();
  await once(peer, "end");
  await expectCutOff(peer);
  const began = performance.now();
  await server.stop();
  expect(performance.now() - began).toBeLessThan(2_500);
});

/** Leads to a port, and of what comes from there keeps nothing back but for a while, which begins soon. */
const slowPath = async (port: number, whileMs: number): Promise<number> => {
  const path = createServer((near) => {
    const far = connectTcp(port, "127.0.0.1");
    near.pipe(far).pipe(near);
    near.on("error", () => far.destroy());
    far.on("error", () => near.destroy());
    setTimeout(() => {
      far.unpipe(near).pause();
      setTimeout(() => far.pipe(near), whileMs);
    }, 300);
  }).listen(0, "127.0.0.1");
  onTestFinished(() => void path.close());
  await once(path, "listening");
  return (path.address() as AddressInfo).port;
};

test("who still takes an answer when his connection has ended gets all of it", async () => {
  const { database: rooted, server } = await serveRaw({ GRPC_CONNECTION_AGE: "1s" });
  const large = sql.unsafe`
    INSERT INTO audit_events (audit_id, action_key, entity_kind_code, occurred_utc, payload_json)
    SELECT gen_random_uuid(), 'large', 'role', now(), jsonb_build_object('text', repeat('x', 200000))
    FROM generate_series(1, 9)`;
  await administer(rooted.url, large);
  const authorization = await freshToken(server);
  const window = 2 ** 23;
  const grpcPort = await slowPath(server.grpcPort, 5_000);
  const session = openGrpc({ grpcPort }, { settings: { initialWindowSize: window } });
  session.on("error", () => undefined);
  await once(session, "connect");
  session.setLocalWindowSize(window);
  await sleep(400);
  // As clients do that ask for more, or whether anybody is there.
  const speaking = setInterval(() => session.destroyed || session.ping(() => undefined), 300);
  onTestFinished(() => clearInterval(speaking));
  const { status } = await sendGrpc(session, PATHS.AUDIT, frame(""), true, { authorization });
  expect(status).toBe("0");
});

const secured = (socket: Socket, ca: string) =>
  connectTls({ socket, ca, servername: "localhost", ALPNProtocols: ["h2"] });

test("over TLS, a connection whose handshake ends during a shutdown holds nothing up", async () => {
  const { server, ca } = await serveTls(database.url);
  const port = server.httpPort!;
  const url = `https://localhost:${port}`;
  const socket = connectTcp(port, "127.0.0.1");
  onTestFinished(() => void socket.destroy());
  await once(socket, "connect");
  // By its answer the server has taken in the connection before it.
  await once(get(`${url}/healthz`, { ca, agent: false }), "response");
  const started = performance.now();
  const stopped = server.stop();
  await expect.poll(() => isOpen(port)).toBe(false);
  connectHttp2(url, { ca, createConnection: () => secured(socket, ca) }).on("error", () => undefined);
  await stopped;
  expect(performance.now() - started).toBeLessThan(2_000);
});

test("both ports take renewed certificates without a restart", async () => {
  const { server, certify } = await serveTls(database.url, { TLS_RELOAD_INTERVAL: "100ms" });
  onTestFinished(() => server.stop());
  const names = async () =>
    [await handshake(server.grpcPort), await handshake(server.httpPort!)].map(({ name }) => name);
  expect(await names()).toEqual(["CN=server", "CN=server"]);
  await certify("renewed");
  await expect.poll(names).toEqual(["CN=renewed", "CN=renewed"]);
});
