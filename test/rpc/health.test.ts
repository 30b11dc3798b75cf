import { randomUUID } from "node:crypto";
import { EventEmitter } from "node:events";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { status } from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import { sql } from "slonik";
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { migrate } from "../../src/commands/migrate.ts";
import { committedMigrations } from "../../src/db/migrations.ts";
import { ServiceIdentityService } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { createHealth } from "../../src/rpc/health.ts";
import { createHealthWatches } from "../../src/rpc/health-watches.ts";
import type { RunningServer } from "../../src/server.ts";
import { makeCredential } from "../../src/service-identity/credentials.ts";
import { administer, databaseName } from "../support/admin.ts";
import { type DatabaseProxy, poolStartups, startDatabaseProxy } from "../support/database-proxy.ts";
import { type TestDatabase, createDatabase, createEmptyDatabase } from "../support/database.ts";
import { frame } from "../support/frames.ts";
import { healthClient, probe, watchHealth } from "../support/health-client.ts";
import { loggedLines } from "../support/logged-lines.ts";
import { metric } from "../support/metrics.ts";
import { PATHS, beginGrpc, openGrpc } from "../support/raw-grpc.ts";
import { expectRefusal } from "../support/refusals.ts";
import { serve } from "../support/serve.ts";

const SERVICES = ["auth.v1.AuthService", "org.v1.OrgService", "service_identity.v1.ServiceIdentityService"];
const FOLLOWING = ["", "readiness", ...SERVICES];
/** Two pings, each with its time limit, a second apart, and the poll's own second before them. */
const FALL_MS = 4_000;
const RISE_MS = 2_000;

const healthz = async ({ httpPort }: RunningServer) => (await fetch(`http://127.0.0.1:${httpPort}/healthz`)).status;

const statuses = async ({ grpcPort }: RunningServer) =>
  new Set(await Promise.all(FOLLOWING.map((name) => probe(grpcPort, name))));

let database: TestDatabase;
let proxy: DatabaseProxy;
let server: RunningServer;

beforeAll(async () => {
  database = await createDatabase();
  proxy = await startDatabaseProxy(database.url);
  server = await serve(proxy.url);
});
afterAll(async () => {
  await server.stop();
  await proxy.close();
  await database.drop();
});

test("a probe of each name succeeds, and of an unknown one is NOT_FOUND", async () => {
  expect(await statuses(server)).toEqual(new Set(["SERVING"]));
  expect(await probe(server.grpcPort, "liveness")).toBe("SERVING");
  expect(await probe(server.grpcPort, "nobody.v1.NobodyService")).toBe(status.NOT_FOUND);
  expect(await healthz(server)).toBe(200);
  expect((await fetch(`http://127.0.0.1:${server.httpPort}/healthz?by=balancer`)).status).toBe(200);
});

test("List names everything that Check knows", async () => {
  const client = healthClient(server.grpcPort);
  const listed = await new Promise((resolve, reject) =>
    client.list({}, (error, value) => (error ? reject(error) : resolve(value?.statuses))),
  );
  client.close();
  const names = ["liveness", ...FOLLOWING];
  expect(listed).toEqual(Object.fromEntries(names.map((name) => [name, { status: "SERVING" }])));
});

test("one ping that fails does not fall, two do, and one that passes rises", async () => {
  const watch = watchHealth(server.grpcPort, "readiness");
  const unknown = watchHealth(server.grpcPort, "nobody");
  const live = watchHealth(server.grpcPort, "liveness");
  await expect.poll(() => watch.heard).toEqual(["SERVING"]);

  const opened = poolStartups(proxy);
  proxy.swallowExisting();
  // The ping after the one that failed opens a connection of its own; the one after that uses it.
  await expect.poll(() => poolStartups(proxy), { timeout: FALL_MS }).toBe(opened + 1);
  const sent = proxy.sent().length;
  await expect.poll(() => proxy.sent().length, { timeout: FALL_MS }).toBeGreaterThan(sent);
  expect(watch.heard).toEqual(["SERVING"]);

  proxy.swallowExisting();
  proxy.swallowNew();
  await expect.poll(() => watch.heard, { timeout: FALL_MS }).toEqual(["SERVING", "NOT_SERVING"]);
  expect(await statuses(server)).toEqual(new Set(["NOT_SERVING"]));
  expect(await probe(server.grpcPort, "liveness")).toBe("SERVING");
  expect(await healthz(server)).toBe(503);

  await proxy.pass();
  await expect.poll(() => watch.heard, { timeout: RISE_MS }).toEqual(["SERVING", "NOT_SERVING", "SERVING"]);
  expect(await statuses(server)).toEqual(new Set(["SERVING"]));
  expect(await healthz(server)).toBe(200);
  expect(unknown.heard).toEqual(["SERVICE_UNKNOWN"]);
  expect(live.heard).toEqual(["SERVING"]);
  for (const each of [watch, unknown, live]) each.cancel();
});

test("/healthz is 200 exactly while readiness is SERVING", async () => {
  const heard = watchHealth(server.grpcPort, "readiness").heard;
  await proxy.refuse();
  await expect.poll(() => heard.at(-1), { timeout: FALL_MS, interval: 5 }).toBe("NOT_SERVING");
  expect(await healthz(server)).toBe(503);
  expect(await metric(server, "database_healthy")).toBe(0);
  await proxy.pass();
  await expect.poll(() => heard.at(-1), { timeout: RISE_MS, interval: 5 }).toBe("SERVING");
  expect(await healthz(server)).toBe(200);
  expect(await metric(server, "database_healthy")).toBe(1);
});

test("a server that starts while its database is away is alive, and not serving under any other name", async () => {
  await proxy.refuse();
  const early = await serve(proxy.url);
  expect(await statuses(early)).toEqual(new Set(["NOT_SERVING"]));
  expect(await probe(early.grpcPort, "liveness")).toBe("SERVING");
  expect(await healthz(early)).toBe(503);
  await proxy.pass();
  await early.stop();
  await expect.poll(() => server.readiness()).toBe("ready");
});

const spyOnKept = () => {
  const kept = vi.spyOn(HealthImplementation.prototype as unknown as { addWatcher: () => void }, "addWatcher");
  onTestFinished(() => kept.mockRestore());
  return kept;
};

test("names that are none of ours are not kept, however many are watched", async () => {
  const kept = spyOnKept();
  const watches = [1, 2, 3].map((n) => watchHealth(server.grpcPort, `${"x".repeat(60_000)}${n}`));
  await expect.poll(() => watches.flatMap(({ heard }) => heard)).toEqual(Array(3).fill("SERVICE_UNKNOWN"));
  expect(kept).not.toHaveBeenCalled();
  for (const watch of watches) watch.cancel();
});

test("a Watch whose deadline passes before its sender ends does not begin, and is not kept", async () => {
  const kept = spyOnKept();
  const { stream, answered } = beginGrpc(openGrpc(server), PATHS.HEALTH_WATCH, { "grpc-timeout": "50m" });
  stream.write(frame(""));
  expect(await answered).toMatchObject({ status: String(status.DEADLINE_EXCEEDED) });
  expect(kept).not.toHaveBeenCalled();
});

test("a Watch that comes when all are being ended ends too, and what was cancelled is not ended again", () => {
  const watches = createHealthWatches(new Set());
  const begin = () => {
    const end = vi.fn<() => void>();
    const call = Object.assign(new EventEmitter(), { request: { service: "" }, write: () => true, end });
    watches.once(() => undefined)(call as never);
    return { call, end };
  };
  const [cancelled, stays] = [begin(), begin()];
  cancelled.call.emit("cancelled");
  watches.endAll();
  const late = begin();
  expect([cancelled, stays, late].map(({ end }) => end.mock.calls.length)).toEqual([0, 1, 1]);
});

test("pending migrations are not ready and refuse calls, until they are applied", async () => {
  const empty = await createEmptyDatabase();
  const unmigrated = await serve(empty.url);
  const transport = createGrpcTransport({ baseUrl: `http://127.0.0.1:${unmigrated.grpcPort}` });
  const { authenticateService } = createClient(ServiceIdentityService, transport);
  const signIn = () => authenticateService({ key: "root", secret: makeCredential("sks", randomUUID()) });
  try {
    expect(unmigrated.readiness()).toBe("migrations pending");
    expect(await statuses(unmigrated)).toEqual(new Set(["NOT_SERVING"]));
    expect(await probe(unmigrated.grpcPort, "liveness")).toBe("SERVING");
    expect(await healthz(unmigrated)).toBe(503);
    expect(await metric(unmigrated, "database_healthy")).toBe(0);
    await expectRefusal(signIn(), "DATABASE_UNAVAILABLE");
    await migrate(empty.url);
    await expect.poll(() => unmigrated.readiness(), { timeout: RISE_MS }).toBe("ready");
    expect(await statuses(unmigrated)).toEqual(new Set(["SERVING"]));
    expect(await metric(unmigrated, "database_healthy")).toBe(1);
    await expectRefusal(signIn(), "SERVICE_CREDENTIALS_INVALID");
  } finally {
    await unmigrated.stop();
    await empty.drop();
  }
});

test("what is pending is named: all of a fresh database, or the queue, or that the tables are not found", async () => {
  const empty = await createEmptyDatabase();
  const [halved, astray, foreign] = [await createDatabase(), await createDatabase(), await createDatabase()];
  await administer(halved.url, sql.unsafe`DROP SCHEMA graphile_worker CASCADE`);
  for (const { url } of [astray, foreign]) {
    const name = sql.identifier([databaseName(url)]);
    await administer(url, sql.unsafe`ALTER DATABASE ${name} SET search_path TO elsewhere`);
  }
  // As one in which something else has a queue of the same make.
  await administer(foreign.url, sql.unsafe`DELETE FROM graphile_migrate.migrations`);
  const pendingOf = async ({ url, drop }: TestDatabase) => {
    const logged = loggedLines();
    await (await serve(url, {}, logged.log)).stop();
    await drop();
    return logged.all.find((line) => line.pending_migrations?.length)?.pending_migrations;
  };
  expect(await pendingOf(empty)).toEqual([...committedMigrations(), "the delivery queue's schema"]);
  expect(await pendingOf(halved)).toEqual(["the delivery queue's schema"]);
  expect(await pendingOf(astray)).toEqual(["none: search_path leads to no tables of ours"]);
  expect(await pendingOf(foreign)).toEqual(committedMigrations());
});

test("pending migrations still refuse calls by a reason while the server leaves", async () => {
  const empty = await createEmptyDatabase();
  const leaving = await serve(empty.url, { SHUTDOWN_DELAY: "2s" });
  const transport = createGrpcTransport({ baseUrl: `http://127.0.0.1:${leaving.grpcPort}` });
  const { authenticateService } = createClient(ServiceIdentityService, transport);
  const watch = watchHealth(leaving.grpcPort, "readiness");
  await expect.poll(() => watch.heard).toEqual(["NOT_SERVING"]);
  const stopped = leaving.stop();
  expect(leaving.readiness()).toBe("shutting down");
  await expectRefusal(
    authenticateService({ key: "root", secret: makeCredential("sks", randomUUID()) }),
    "DATABASE_UNAVAILABLE",
  );
  await stopped;
  expect(await watch.ended).toBe(status.OK);
  // It was not serving before, for another reason.
  expect(watch.heard).toEqual(["NOT_SERVING"]);
  await empty.drop();
});

test("a Watch ends when the server stops", async () => {
  const other = await serve(database.url);
  const watch = watchHealth(other.grpcPort, "");
  await expect.poll(() => watch.heard).toEqual(["SERVING"]);
  await other.stop();
  expect(watch.heard).toEqual(["SERVING", "NOT_SERVING"]);
  expect(await watch.ended).toBe(status.OK);
});

/** Health whose pings are answered by `use`, on a clock that stands. */
const healthOf = (use: () => Promise<readonly string[]>) => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  onTestFinished(() => {
    vi.useRealTimers();
  });
  const { log, all: lines } = loggedLines();
  const onChange = vi.fn<(readiness: string) => void>();
  const health = createHealth({ probe: { use } as never, services: [], log, onFailure: () => undefined, onChange });
  return { health, lines, changes: () => onChange.mock.calls.map(([readiness]) => readiness) };
};

test("a ping that is answered once the server leaves makes nothing serve again, and is the last", async () => {
  const ping = Promise.withResolvers<readonly string[]>();
  const use = vi.fn(() => ping.promise);
  const { health } = healthOf(use);
  const started = health.start();
  health.leave();
  ping.resolve([]);
  await started;
  await vi.advanceTimersByTimeAsync(5_000);
  expect(health.readiness()).toBe("shutting down");
  expect(use).toHaveBeenCalledOnce();
});

test("a server that leaves between two pings makes no other", async () => {
  const use = vi.fn(() => Promise.resolve([]));
  const { health } = healthOf(use);
  await health.start();
  health.leave();
  await vi.advanceTimersByTimeAsync(5_000);
  expect(use).toHaveBeenCalledOnce();
});

test("what pings find is told when it changes, and as a warning where it hinders", async () => {
  let pending: readonly string[] = [];
  const { health, lines, changes } = healthOf(() => Promise.resolve(pending));
  await health.start();
  await vi.advanceTimersByTimeAsync(3_000);
  pending = ["000099-later.sql"];
  await vi.advanceTimersByTimeAsync(3_000);
  health.leave();
  expect(changes()).toEqual(["ready", "migrations pending", "shutting down"]);
  expect(lines).toMatchObject([
    { level: "info", readiness: "ready", pending_migrations: [] },
    { level: "warn", readiness: "migrations pending", pending_migrations: pending },
    { level: "info", readiness: "shutting down" },
  ]);
});
