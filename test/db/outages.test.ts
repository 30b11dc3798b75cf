import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Code, ConnectError } from "@connectrpc/connect";
import { type DatabasePool, type QuerySqlToken, sql } from "slonik";
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import { z } from "zod";
import { migrate } from "../../src/commands/migrate.ts";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "../../src/db/embedded-postgres.ts";
import { withPool } from "../support/admin.ts";
import { type DatabaseProxy, poolStartups, startDatabaseProxy } from "../support/database-proxy.ts";
import { lockWaiters } from "../support/lock-waiters.ts";
import { metric } from "../support/metrics.ts";
import { refused } from "../support/refusals.ts";
import { serve } from "../support/serve.ts";
import { type TestService, launchService } from "../support/service.ts";

const DEADLINE_MS = 5_000;
const RECOVERY_MS = 2_000;
const POOL_MAX = 4;
// Of health's and the delivery's, beside those that calls use.
const OTHERS_MAX = 2 + 3;

let dataDir: string;
let postgres: EmbeddedPostgres;
let proxy: DatabaseProxy;
let service: TestService;
const faults: unknown[] = [];
const onFault = (error: unknown) => faults.push(error);

beforeAll(async () => {
  process.on("unhandledRejection", onFault).on("uncaughtException", onFault);
  dataDir = await mkdtemp(join(tmpdir(), "auth-service-outage-"));
  postgres = await startEmbeddedPostgres({ dataDir, durable: false });
  await migrate(postgres.url);
  proxy = await startDatabaseProxy(postgres.url);
  service = await launchService("grpc", {
    databaseUrl: proxy.url,
    env: { DATABASE_POOL_MAX: String(POOL_MAX), DELIVERY_CONCURRENCY: "1", SHUTDOWN_GRACE: "1s" },
  });
});

afterAll(async () => {
  await service.stop();
  await proxy.close();
  await postgres.stop();
  await rm(dataDir, { recursive: true, force: true });
});

afterEach(() => {
  expect(faults.splice(0)).toEqual([]);
});

/** Past the proxy. */
const look = <T>(query: (pool: DatabasePool) => Promise<T>): Promise<T> => withPool(postgres.url, query);

/** Of the service, as PostgreSQL sees them. */
const connections = () =>
  look((pool) =>
    pool.anyFirst(sql.type(z.object({ pid: z.number() }))`
      SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`),
  );

const call = (timeoutMs = DEADLINE_MS) => service.org.listTenants({}, { timeoutMs });

const gateLoad = () =>
  Promise.all(["connections_in_use", "waiting"].map((part) => metric(service, `database_pool_${part}`)));

const expectUnavailable = async (calls = 3 * POOL_MAX) => {
  const started = performance.now();
  const codes = await Promise.all(
    Array.from({ length: calls }, async () => {
      const { error, reason } = await refused(call());
      return { code: Code[error.code], reason, inTime: performance.now() - started < DEADLINE_MS };
    }),
  );
  expect(new Set(codes.map((code) => JSON.stringify(code)))).toEqual(
    new Set([JSON.stringify({ code: "Unavailable", reason: "DATABASE_UNAVAILABLE", inTime: true })]),
  );
};

/** From the database's return on: calls pass, as many at once as there are connections, and nothing is left over. */
const expectRecovery = async () => {
  const returned = performance.now();
  await vi.waitFor(() => Promise.all(Array.from({ length: POOL_MAX }, () => call(1_000))), {
    timeout: RECOVERY_MS,
    interval: 20,
  });
  expect(performance.now() - returned).toBeLessThan(RECOVERY_MS);
  await expect.poll(() => service.readiness(), { timeout: 3_000 }).toBe("ready");
  await expect
    .poll(async () => (await connections()).length, { timeout: 5_000 })
    .toBeLessThanOrEqual(POOL_MAX + OTHERS_MAX);
  // What asks every moment, such as the audit events' sequencer, may have hung on to a connection until its time was up.
  await expect.poll(gateLoad, { timeout: DEADLINE_MS }).toEqual([0, 0]);
};

const postmaster = async () => {
  const file = await readFile(join(dataDir, "postgres", "cluster", "postmaster.pid"), "utf8");
  return Number.parseInt(file, 10);
};
const backends = () =>
  look((pool) => pool.anyFirst(sql.type(z.object({ pid: z.number() }))`SELECT pid FROM pg_stat_activity`));

/** Opens as many as there may be: one opened later, by who finds all others in use, would hide what became of them. */
const fillPool = () =>
  look(async (pool) => {
    const answered = await pool.transaction(async (tx) => {
      await tx.query(sql.unsafe`LOCK TABLE capabilities`);
      const calls = Array.from({ length: POOL_MAX }, () =>
        service.org.listCapabilities({}, { timeoutMs: DEADLINE_MS }),
      );
      await expect.poll(() => lockWaiters(tx), { timeout: DEADLINE_MS }).toBe(POOL_MAX);
      return calls;
    });
    await Promise.all(answered);
  });

test("connections refused and reset", async () => {
  await proxy.refuse();
  await expectUnavailable();
  await proxy.pass();
  await expectRecovery();
});

test("a network that swallows everything, for ever on connections that were open", async () => {
  await fillPool();
  proxy.swallowExisting();
  proxy.swallowNew();
  await expectUnavailable();
  await proxy.pass();
  await expectRecovery();
});

test("a network that forgot the open connections and takes new ones", async () => {
  await fillPool();
  proxy.swallowExisting();
  // No ping tells this from slow statements: each hung one lasts as long as a statement may.
  const started = performance.now();
  const answers = await Promise.all(Array.from({ length: POOL_MAX }, () => refused(call())));
  expect(performance.now() - started).toBeLessThan(DEADLINE_MS + 500);
  for (const { error } of answers) expect([Code.Unavailable, Code.DeadlineExceeded]).toContain(error.code);
  await expectRecovery();
});

test("idle connections that a network forgot are not used again once a ping fails", async () => {
  await fillPool();
  const before = poolStartups(proxy);
  proxy.swallowExisting();
  await expect.poll(() => poolStartups(proxy), { timeout: RECOVERY_MS + 1_000 }).toBeGreaterThan(before);
  // Each of them, used again, would hold its call for longer than that.
  await expectRecovery();
});

test("a database whose processes are all stopped", async () => {
  const pids = [await postmaster(), ...(await backends())];
  const send = (signal: NodeJS.Signals) => {
    for (const pid of pids) {
      try {
        process.kill(pid, signal);
      } catch {
        // The connection that listed them has ended since.
      }
    }
  };
  send("SIGSTOP");
  try {
    const started = performance.now();
    const { error } = await refused(call(1_000));
    expect(performance.now() - started).toBeLessThan(1_500);
    expect([Code.Unavailable, Code.DeadlineExceeded]).toContain(error.code);
    await expectUnavailable();
  } finally {
    send("SIGCONT");
  }
  await expectRecovery();
});

test("every connection ended by the database", async () => {
  await fillPool();
  const calls = Array.from({ length: 20 }, () =>
    call().then(
      () => undefined,
      (error: unknown) => ConnectError.from(error).code,
    ),
  );
  await look((pool) =>
    pool.any(sql.unsafe`
      SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`),
  );
  expect(await Promise.all(calls)).toSatisfy((codes: (Code | undefined)[]) =>
    codes.every((code) => code === undefined || code === Code.Unavailable),
  );
  await expectRecovery();
});

test("a replica where the name led to the primary, until it is promoted", async () => {
  const run = (statement: QuerySqlToken) => look((pool) => pool.query(statement));
  // What new connections are told of it; all else they could see of a replica is the same.
  await run(sql.unsafe`CREATE FUNCTION public.pg_is_in_recovery() RETURNS boolean LANGUAGE sql RETURN true`);
  await run(sql.unsafe`ALTER DATABASE postgres SET search_path = public, pg_catalog`);
  proxy.reset();
  await expect.poll(() => service.readiness(), { timeout: 5_000 }).toBe("database unavailable");
  await expectUnavailable();
  await run(sql.unsafe`ALTER DATABASE postgres RESET search_path`);
  await run(sql.unsafe`DROP FUNCTION public.pg_is_in_recovery()`);
  await expectRecovery();
});

test("a postmaster that is killed, and started again elsewhere", async () => {
  process.kill(await postmaster(), "SIGKILL");
  // Its processes answer until it is gone, and end when they are told that it is.
  await expect.poll(() => backends().catch(() => "gone"), { timeout: DEADLINE_MS }).toBe("gone");
  await expectUnavailable();
  await postgres.stop();
  postgres = await startEmbeddedPostgres({ dataDir, durable: false });
  proxy.target(postgres.url);
  await expectRecovery();
});

describe("a start while the database", () => {
  test.each([
    ["refuses connections", () => proxy.refuse()],
    ["is silent", () => Promise.resolve(proxy.swallowNew())],
  ])("%s: it serves, is not ready, and becomes ready", async (_name, fail) => {
    proxy.reset();
    await fail();
    const other = await serve(proxy.url, { DATABASE_CONNECT_TIMEOUT: "1s" });
    try {
      expect(other.readiness()).toBe("database unavailable");
      await proxy.pass();
      await expect.poll(() => other.readiness(), { timeout: RECOVERY_MS }).toBe("ready");
    } finally {
      await proxy.pass();
      await other.stop();
    }
    await expectRecovery();
  });
});
