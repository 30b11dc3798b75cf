import { once } from "node:events";
import { Agent, get } from "node:http";
import { type OutgoingHttpHeaders, type SecureClientSessionOptions, connect as connectHttp2 } from "node:http2";
import { connect as connectTcp } from "node:net";
import { Agent as TlsAgent, get as getTls, request as requestTls } from "node:https";
import { status } from "@grpc/grpc-js";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { sql } from "slonik";
import { afterAll, beforeAll, expect, inject, onTestFinished, test } from "vitest";
import { OrgService } from "../../src/gen/org/v1/org_pb.ts";
import { ServiceIdentityService } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { type TestDatabase, createRootedDatabase } from "../support/database.ts";
import { frame } from "../support/frames.ts";
import { probe, watchHealth } from "../support/health-client.ts";
import { holdLock } from "../support/held-up.ts";
import { freshToken } from "../support/raw-grpc.ts";
import { expectRefusal } from "../support/refusals.ts";
import { serveTls } from "../support/serve-tls.ts";
import { type ServerProcess, startProcess } from "../support/server-process.ts";
import { clientsOf } from "../support/service.ts";

let database: TestDatabase;

beforeAll(async () => {
  database = await createRootedDatabase();
});
afterAll(() => database.drop());

/** Locks all tenants, so that a call which writes one is held. */
const lockTenants = () => holdLock(database.url, sql.unsafe`LOCK TABLE tenants IN SHARE MODE`);

/** Clients of both ports, signed in as root. */
const signIn = async (server: ServerProcess) => {
  const headers = { authorization: await freshToken(server) };
  return { headers, grpc: clientsOf("grpc", server)(headers).org, connect: clientsOf("connect", server)(headers).org };
};

/** Calls without a pause until told to stop, and says of each when it began and how it ended. */
const callOn = (call: () => Promise<unknown>) => {
  const calls: { readonly began: number; readonly error: unknown }[] = [];
  let stopped = false;
  const run = async () => {
    while (!stopped) {
      const began = performance.now();
      const error: unknown = await call().then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      calls.push({ began, error });
      // Once the port is closed nothing more is learnt.
      if (error !== undefined) return;
    }
  };
  const done = Promise.all(Array.from({ length: 4 }, run));
  return {
    calls,
    stop: () => {
      stopped = true;
      return done;
    },
  };
};

/** A refused stream never began (RFC 9113, 8.7): gRPC's own clients send it again without a word. */
const isUnprocessed = (error: unknown) => String(error).includes("NGHTTP2_REFUSED_STREAM");

/** Connections on which nothing goes on. */
const idleConnections = async (grpcPort: number, httpPort: number) => {
  const agent = new Agent({ keepAlive: true });
  const request = get({ port: httpPort, host: "127.0.0.1", path: "/healthz", agent });
  const [response] = (await once(request, "response")) as [NodeJS.ReadableStream];
  response.resume();
  await once(response, "end");
  const session = connectHttp2(`http://127.0.0.1:${grpcPort}`);
  session.on("error", () => undefined);
  await once(session, "connect");
  onTestFinished(() => {
    agent.destroy();
    session.destroy();
  });
};

test("a signal turns pollers away, answers all that began, and ends with 0", async () => {
  const delayMs = 1_000;
  const server = await startProcess(database.url, { SHUTDOWN_DELAY: `${delayMs}ms` });
  const { grpc, connect } = await signIn(server);
  await idleConnections(server.grpcPort, server.httpPort);
  const watch = watchHealth(server.grpcPort, "readiness");
  const streams = [callOn(() => grpc.listTenants({})), callOn(() => connect.listTenants({}))];
  for (const { calls } of streams) await expect.poll(() => calls.length).toBeGreaterThan(10);

  const signalled = performance.now();
  server.process.kill("SIGTERM");
  // npm's echo of the same signal.
  server.process.kill("SIGTERM");
  await expect.poll(() => watch.heard).toEqual(["SERVING", "NOT_SERVING"]);
  expect(await probe(server.grpcPort, "")).toBe("NOT_SERVING");
  expect((await fetch(`http://127.0.0.1:${server.httpPort}/healthz`)).status).toBe(503);
  const before = streams.map(({ calls }) => calls.length);
  for (const [index, { calls }] of streams.entries()) {
    // Beyond the four that were under way.
    await expect.poll(() => calls.length).toBeGreaterThan(before[index]! + 4);
  }

  expect(await watch.ended).toBe(status.OK);
  expect(await server.exit).toBe(0);
  await Promise.all(streams.map(({ stop }) => stop()));
  for (const { calls } of streams) {
    // What was on its way while the ports closed may have found them closed.
    const failed = calls.filter(({ error }) => error !== undefined && !isUnprocessed(error));
    expect(failed.filter(({ began }) => began < signalled + delayMs / 2)).toEqual([]);
  }
  watch.cancel();
});

/** From the last call's end on, answers have three seconds to be read. */
const UNREAD_MS = 3_000;

test("calls that are under way end as they would have, on either port, however long that takes", async () => {
  const server = await startProcess(database.url, { SHUTDOWN_DELAY: "0ms", DATABASE_STATEMENT_TIMEOUT: "20s" });
  const { grpc, connect } = await signIn(server);
  const lock = await lockTenants();
  const held = [grpc.createTenant({ label: "gRPC" }), connect.createTenant({ label: "HTTP" })];
  await expect.poll(lock.waiters).toBe(2);
  const signalled = performance.now();
  server.process.kill("SIGTERM");
  await expect
    .poll(() =>
      fetch(`http://127.0.0.1:${server.httpPort}/healthz`).then(
        () => "open",
        () => "closed",
      ),
    )
    .toBe("closed");
  await expect.poll(() => performance.now() - signalled).toBeGreaterThan(UNREAD_MS + 500);
  await lock.release();
  expect((await Promise.all(held)).map(({ tenant }) => tenant?.label)).toEqual(["gRPC", "HTTP"]);
  expect(await server.exit).toBe(0);
});

test.each([
  ["SIGTERM", 143],
  ["SIGINT", 130],
] as const)("a second %s ends at once with %i", async (signal, code) => {
  const server = await startProcess(database.url, { SHUTDOWN_DELAY: "0ms", DATABASE_STATEMENT_TIMEOUT: "20s" });
  const { grpc } = await signIn(server);
  const lock = await lockTenants();
  const held = grpc.createTenant({ label: "held" }).catch(() => "cut off");
  await expect.poll(lock.waiters).toBe(1);
  const first = performance.now();
  const again = setInterval(() => server.process.kill(signal), 50);
  onTestFinished(() => clearInterval(again));
  expect(await server.exit).toBe(code);
  // What came in the first second was the first's echo.
  expect(performance.now() - first).toBeGreaterThan(1_000);
  expect(performance.now() - first).toBeLessThan(3_000);
  expect(await held).toBe("cut off");
});

test("what hangs on either port is cut off after SHUTDOWN_GRACE, and told so", async () => {
  const server = await startProcess(database.url, {
    SHUTDOWN_DELAY: "0ms",
    SHUTDOWN_GRACE: "500ms",
    DATABASE_STATEMENT_TIMEOUT: "20s",
  });
  const { grpc, connect } = await signIn(server);
  const lock = await lockTenants();
  // Several on a connection: what grpc-js itself would do with the last one is the connection's end to its caller.
  const calls = [grpc, connect, grpc, connect].map((org) => org.createTenant({ label: "hung" }));
  const told = Promise.all(calls.map((call) => expectRefusal(call, "SHUTTING_DOWN")));
  await expect.poll(lock.waiters).toBe(4);
  const started = performance.now();
  server.process.kill("SIGTERM");
  expect(await server.exit).toBe(0);
  expect(performance.now() - started).toBeGreaterThan(500);
  expect(performance.now() - started).toBeLessThan(4_000);
  await told;
});

/** Watches audit events, and takes no byte of them; answers when the watch has begun. */
const watchUnread = (
  url: string,
  headers: OutgoingHttpHeaders,
  message: string,
  options: SecureClientSessionOptions = {},
) => {
  const session = connectHttp2(url, { ...options, settings: { initialWindowSize: 0 } });
  session.on("error", () => undefined);
  onTestFinished(() => session.destroy());
  const stuck = session.request({ ":method": "POST", ":path": "/org.v1.OrgService/WatchAuditEvents", ...headers });
  stuck.on("error", () => undefined).end(frame(message));
  return once(stuck, "response");
};

test("a watcher that reads nothing does not keep the process for the whole SHUTDOWN_GRACE", async () => {
  const server = await startProcess(database.url, { SHUTDOWN_DELAY: "0ms", SHUTDOWN_GRACE: "10m" });
  const { grpc, headers } = await signIn(server);
  const type = { "content-type": "application/grpc", te: "trailers" };
  await watchUnread(`http://127.0.0.1:${server.grpcPort}`, { ...type, ...headers }, "");
  const other = grpc.watchAuditEvents({})[Symbol.asyncIterator]();
  const heard = other.next();
  await grpc.createTenant({ label: "heard of" });
  expect((await heard).done).toBe(false);
  server.process.kill("SIGTERM");
  await other.next().catch(() => undefined);
  expect(await server.exit).toBe(0);
});

test("over TLS, idle connections of HTTP/1.1 and HTTP/2 hold nothing up", async () => {
  const { server, ca } = await serveTls(database.url);
  const agent = new TlsAgent({ keepAlive: true, ca });
  onTestFinished(() => agent.destroy());
  const url = `https://localhost:${server.httpPort}/healthz`;
  const [response] = (await once(getTls(url, { agent }), "response")) as [NodeJS.ReadableStream];
  response.resume();
  await once(response, "end");
  for (const port of [server.httpPort, server.grpcPort]) {
    const session = connectHttp2(`https://localhost:${port}`, { ca });
    session.on("error", () => undefined);
    onTestFinished(() => session.destroy());
    await once(session, "connect");
    // The client's handshake ends first: an answered ping says that the server has the connection too.
    await new Promise((resolve) => session.ping(resolve));
  }
  const started = performance.now();
  await server.stop();
  expect(performance.now() - started).toBeLessThan(2_000);
});

test("over HTTP/2, a watcher that reads nothing does not keep it for the whole SHUTDOWN_GRACE", async () => {
  const { server, ca } = await serveTls(database.url, { SHUTDOWN_GRACE: "10m" });
  const baseUrl = `https://localhost:${server.httpPort}`;
  const transport = createConnectTransport({ baseUrl, httpVersion: "2", nodeOptions: { ca } });
  const [services, org] = [createClient(ServiceIdentityService, transport), createClient(OrgService, transport)];
  const signIn = { key: "root", secret: inject("rootSecret") };
  const headers = { authorization: `Bearer ${(await services.authenticateService(signIn)).serviceToken}` };
  const type = { "content-type": "application/connect+json" };
  const begun = watchUnread(baseUrl, { ...type, ...headers }, "{}", { ca });
  const { tenant } = await org.createTenant({ label: "watched" }, { headers });
  // More than is kept for who does not read: the next message waits.
  for (let n = 0; n < 100; n++) {
    const label = `${n} ${"x".repeat(180)}`;
    await org.updateTenant({ tenantId: tenant!.tenantId, label, updateMask: { paths: ["label"] } }, { headers });
  }
  await begun;
  await server.stop();
});

test("over TLS, a connection to either port that never says anything holds nothing up past SHUTDOWN_GRACE", async () => {
  const { server } = await serveTls(database.url, { SHUTDOWN_GRACE: "300ms" });
  const silent = [server.grpcPort, server.httpPort!].map((port) => connectTcp(port, "127.0.0.1"));
  onTestFinished(() => silent.forEach((socket) => socket.destroy()));
  for (const socket of silent) {
    socket.on("error", () => undefined);
    await once(socket, "connect");
  }
  const started = performance.now();
  await server.stop();
  expect(performance.now() - started).toBeLessThan(10_000);
});

test("over TLS, a request of HTTP/1.1 that never ends is cut off after SHUTDOWN_GRACE", async () => {
  const { server, ca } = await serveTls(database.url, { SHUTDOWN_GRACE: "300ms" });
  const url = `https://localhost:${server.httpPort}/org.v1.OrgService/ListTenants`;
  const headers = { "content-type": "application/json", "content-length": "100" };
  const request = requestTls(url, { method: "POST", headers, ca, agent: false });
  request.on("error", () => undefined);
  const closed = new Promise((resolve) => request.once("close", resolve));
  request.write("{");
  const [socket] = (await once(request, "socket")) as [NodeJS.EventEmitter];
  await once(socket, "secureConnect");
  const started = performance.now();
  await server.stop();
  expect(performance.now() - started).toBeLessThan(2_000);
  await closed;
});
