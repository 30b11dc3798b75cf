import { sql } from "slonik";
import { expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { parseConfig } from "../../src/config.ts";
import { openDatabase } from "../../src/db/pool.ts";
import { purge, schedulePurge } from "../../src/db/purge.ts";
import { createLog } from "../../src/log.ts";
import { createEmptyDatabase } from "../support/database.ts";
import { loggedLines } from "../support/logged-lines.ts";
import { openFor } from "../support/open-database.ts";
import { launchService, startService } from "../support/service.ts";
import { plantUser } from "../support/sign-in.ts";

const ROWS = 2_500;
const { purge: RETENTION } = parseConfig({});

/** Purges on two replicas at once; answers with how many rows both deleted. */
const purgeTwice = async (retention = RETENTION) => {
  const { databaseUrl, config } = await startService("grpc");
  const replicas = [1, 2].map(() =>
    openDatabase({ url: databaseUrl, settings: config.database, log: createLog("silent") }),
  );
  const purged = await Promise.all(replicas.map((db) => purge(db, retention)));
  await Promise.all(replicas.map((db) => db.end()));
  return purged.reduce((sum, rows) => sum + rows, 0);
};

test("what ended longer ago than the retention goes, in batches and on two replicas at once; the rest stays", async () => {
  const { pool, services, addService } = await startService("grpc");
  const { serviceId, token } = await addService([]);
  const endedDaysAgo = (days: number, rows: number) =>
    pool.query(sql.type(z.object({}))`
      INSERT INTO service_sessions (svc_session_id, svc_id, token_hash_text, expiry_utc)
      SELECT gen_random_uuid(), ${serviceId}::uuid, 'x', now() - ${days}::int * interval '1 day'
      FROM generate_series(1, ${rows}::int)`);
  await endedDaysAgo(31, ROWS);
  await endedDaysAgo(29, 3);
  expect(await purgeTwice()).toBe(ROWS);
  const { sessions } = await services.listServiceSessions({ serviceId, includeEnded: true });
  expect(sessions).toHaveLength(4);
  expect((await services.verifyServiceToken({ serviceToken: token })).active).toBe(true);
});

test("users' sessions go by the end that came first, and those that live stay", async () => {
  const service = await startService("grpc");
  const tenantId = await service.addTenant();
  const userId = await plantUser(service, tenantId);
  const plant = (expiry: string, revoked: string | null) =>
    service.pool.query(sql.unsafe`
      INSERT INTO refresh_sessions (session_id, user_id, tenant_id, refresh_token_hash_text, expiry_utc, revoked_utc)
      VALUES (gen_random_uuid(), ${userId}::uuid, ${tenantId}::uuid, '1:x', now() + ${expiry}::interval,
        now() + ${revoked}::interval)`);
  await plant("-31 days", null);
  await plant("20 days", "-31 days");
  await plant("-29 days", null);
  await plant("20 days", "-29 days");
  await plant("20 days", null);
  expect(await purgeTwice()).toBe(2);
  const { sessions } = await service.auth.listSessions({ tenantId, userId, includeEnded: true });
  expect(sessions).toHaveLength(3);
});

test("codes, throttles and known networks go once nobody asks for them", async () => {
  const service = await startService("grpc");
  const { pool } = service;
  const tenantId = await service.addTenant();
  const userId = await plantUser(service, tenantId);
  const plant = async (code: string, throttle: string, network: string) => {
    await pool.query(sql.unsafe`
      INSERT INTO otp_codes (otp_id, tenant_id, destination_text, channel_code, purpose_code, code_hash_text, expiry_utc)
      VALUES (gen_random_uuid(), ${tenantId}::uuid, 'x', 'email', 'login', 'x', now() - ${code}::interval)`);
    await pool.query(sql.unsafe`
      INSERT INTO throttles (throttle_key_hash, hit_count, window_end_utc)
      VALUES (gen_random_uuid()::text, 1, now() - ${throttle}::interval)`);
    await pool.query(sql.unsafe`
      INSERT INTO login_networks (tenant_id, user_id, network_hash, last_login_utc)
      VALUES (${tenantId}::uuid, ${userId}::uuid, gen_random_uuid()::text, now() - ${network}::interval)`);
  };
  await plant("25 hours", "61 minutes", "91 days");
  await plant("23 hours", "59 minutes", "89 days");
  expect(await purgeTwice()).toBe(3);
  expect(
    await pool.one(sql.unsafe`
      SELECT (SELECT count(*) FROM otp_codes)::int AS codes, (SELECT count(*) FROM throttles)::int AS throttles,
        (SELECT count(*) FROM login_networks)::int AS networks`),
  ).toEqual({ codes: 1, throttles: 1, networks: 1 });
});

test("a throttle stays for as long as its bucket can refuse or grow, however long its window is", async () => {
  const { pool } = await startService("grpc");
  const { purge: retention } = parseConfig({ THROTTLE_WINDOW: "20m" });
  await pool.query(sql.unsafe`DELETE FROM throttles`);
  await pool.query(sql.unsafe`
    INSERT INTO throttles (throttle_key_hash, hit_count, window_end_utc)
    VALUES ('gone', 1, now() - interval '121 minutes'), ('kept', 1, now() - interval '119 minutes')`);
  expect(await purgeTwice(retention)).toBe(1);
  expect(await pool.any(sql.unsafe`SELECT throttle_key_hash AS key FROM throttles`)).toEqual([{ key: "kept" }]);
  // With the usual windows of ten minutes it is an hour.
  expect(await purgeTwice()).toBe(1);
});

test("dead letters go a week after their last try, in batches; what is still tried or being tried stays", async () => {
  const { pool } = await startService("grpc");
  const plant = async (task: string, rows: number, age: string, attempts: number, lockedBy: string | null) => {
    await pool.query(sql.unsafe`
      SELECT graphile_worker.add_job(${task}, run_at => now() + interval '1 day') FROM generate_series(1, ${rows}::int)`);
    await pool.query(sql.unsafe`
      UPDATE graphile_worker._private_jobs j SET attempts = ${attempts}, max_attempts = 3, locked_by = ${lockedBy},
        locked_at = CASE WHEN ${lockedBy}::text IS NOT NULL THEN now() END, updated_at = now() - ${age}::interval
      FROM graphile_worker._private_tasks t WHERE t.id = j.task_id AND t.identifier = ${task}`);
  };
  await plant("old-letter", ROWS, "169 hours", 3, null);
  await plant("new-letter", 1, "167 hours", 3, null);
  await plant("still-tried", 1, "169 hours", 2, null);
  await pool.query(sql.unsafe`INSERT INTO delivery_workers (worker_id, seen_utc) VALUES ('a-replica', now())`);
  await plant("in-flight", 1, "169 hours", 3, "a-replica");
  expect(await purgeTwice()).toBe(ROWS);
  expect(
    await pool.any(sql.unsafe`SELECT j.task_identifier AS task FROM graphile_worker.jobs j ORDER BY task`),
  ).toEqual([{ task: "in-flight" }, { task: "new-letter" }, { task: "still-tried" }]);
});

test("a server purges by itself every PURGE_INTERVAL, as SESSION_RETENTION says, and never an audit event", async () => {
  const service = await launchService("grpc", { env: { PURGE_INTERVAL: "1s", SESSION_RETENTION: "2d" } });
  onTestFinished(service.stop);
  const { pool, services, addService } = service;
  const { serviceId } = await addService([]);
  await pool.query(sql.unsafe`UPDATE audit_events SET occurred_utc = now() - interval '10 years'`);
  const { events } = await service.org.listAuditEvents({});
  const plant = (daysAgo: number) =>
    pool.query(sql.unsafe`
      INSERT INTO service_sessions (svc_session_id, svc_id, token_hash_text, expiry_utc)
      VALUES (gen_random_uuid(), ${serviceId}::uuid, 'x', now() - ${daysAgo}::int * interval '1 day')`);
  const sessions = async () => (await services.listServiceSessions({ serviceId, includeEnded: true })).sessions.length;
  for (let round = 0; round < 2; round++) {
    await plant(3);
    await expect.poll(sessions).toBe(1);
  }
  await plant(1);
  await plant(3);
  await expect.poll(sessions).toBe(2);
  expect(events.length).toBeGreaterThan(0);
  expect((await service.org.listAuditEvents({})).events).toEqual(events);
});

test("what somebody has locked is passed over, and goes the next time", async () => {
  const service = await startService("grpc");
  const { pool } = service;
  const { serviceId } = await service.addService([]);
  const tenantId = await service.addTenant();
  const userId = await plantUser(service, tenantId);
  await purgeTwice();
  const plant = [
    sql.unsafe`
      INSERT INTO service_sessions (svc_session_id, svc_id, token_hash_text, expiry_utc)
      VALUES (gen_random_uuid(), ${serviceId}::uuid, 'locked', now() - interval '1 year')`,
    sql.unsafe`
      INSERT INTO refresh_sessions (session_id, user_id, tenant_id, refresh_token_hash_text, expiry_utc, revoked_utc)
      VALUES (gen_random_uuid(), ${userId}::uuid, ${tenantId}::uuid, 'locked', now() - interval '1 year', NULL),
        (gen_random_uuid(), ${userId}::uuid, ${tenantId}::uuid, 'locked', now(), now() - interval '1 year')`,
    sql.unsafe`
      INSERT INTO otp_codes (otp_id, tenant_id, destination_text, channel_code, purpose_code, code_hash_text, expiry_utc)
      VALUES (gen_random_uuid(), ${tenantId}::uuid, 'x', 'email', 'login', 'locked', now() - interval '1 year')`,
    sql.unsafe`
      INSERT INTO throttles (throttle_key_hash, hit_count, window_end_utc)
      VALUES ('locked', 1, now() - interval '1 year')`,
    sql.unsafe`
      INSERT INTO login_networks (tenant_id, user_id, network_hash, last_login_utc)
      VALUES (${tenantId}::uuid, ${userId}::uuid, 'locked', now() - interval '1 year')`,
  ];
  for (const statement of plant) await pool.query(statement);
  const lock = [
    sql.unsafe`SELECT FROM service_sessions WHERE token_hash_text = 'locked' FOR UPDATE`,
    sql.unsafe`SELECT FROM refresh_sessions WHERE refresh_token_hash_text = 'locked' FOR UPDATE`,
    sql.unsafe`SELECT FROM otp_codes WHERE code_hash_text = 'locked' FOR UPDATE`,
    sql.unsafe`SELECT FROM throttles WHERE throttle_key_hash = 'locked' FOR UPDATE`,
    sql.unsafe`SELECT FROM login_networks WHERE network_hash = 'locked' FOR UPDATE`,
  ];
  await pool.transaction(async (tx) => {
    for (const statement of lock) await tx.query(statement);
    expect(await purgeTwice()).toBe(0);
  });
  expect(await purgeTwice()).toBe(6);
});

test("a purge that fails is told of, and the next one tries again", async () => {
  // Which has nothing that could be purged.
  const database = await createEmptyDatabase();
  onTestFinished(() => database.drop());
  const { log, all } = loggedLines();
  onTestFinished(schedulePurge(openFor(database.url), { ...RETENTION, intervalMs: 10 }, log));
  await expect.poll(() => all.length).toBeGreaterThanOrEqual(2);
  const msg = "purge failed; the next one tries again";
  expect(all.slice(0, 2)).toMatchObject([{ msg }, { msg }]);
});
