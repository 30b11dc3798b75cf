import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type QuerySqlToken, sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { openDatabase } from "../../src/db/pool.ts";
import { purge } from "../../src/db/purge.ts";
import { createLog } from "../../src/log.ts";
import { despite, heldUp } from "../support/held-up.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, startService, transports } from "../support/service.ts";

const MANY = 5_000;
const anyRow = z.object({});
const sessionIdRow = z.object({ svc_session_id: z.string() });
const countRow = z.object({ sessions: z.bigint() });

/** Sessions as a stolen secret could open them, more than one revocation writes. */
const openMany = ({ pool }: TestService, serviceId: string, secretId: string) =>
  pool.query(sql.type(anyRow)`
    INSERT INTO service_sessions (svc_session_id, svc_id, secret_id, token_hash_text, expiry_utc)
    SELECT gen_random_uuid(), ${serviceId}::uuid, ${secretId}::uuid, 'x', now() + interval '1 day'
    FROM generate_series(1, ${MANY}::int)`);

const notYetWritten = async ({ pool }: TestService, serviceId: string) =>
  Number(
    (
      await pool.one(sql.type(countRow)`
        SELECT count(*) AS sessions FROM service_sessions
        WHERE svc_id = ${serviceId}::uuid AND revoked_utc IS NULL`)
    ).sessions,
  );

/** A session that the mark alone has ended, on the first page of all. */
const lastNotYetWritten = async ({ pool }: TestService, serviceId: string) =>
  (
    await pool.one(sql.type(sessionIdRow)`
      SELECT svc_session_id FROM service_sessions
      WHERE svc_id = ${serviceId}::uuid AND revoked_utc IS NULL
      ORDER BY svc_session_id DESC LIMIT 1`)
  ).svc_session_id;

const purgeNow = async ({ databaseUrl, config }: TestService) => {
  const db = openDatabase({ url: databaseUrl, settings: config.database, log: createLog("silent") });
  await purge(db, config.purge);
  await db.end();
};

/** A sign-in that has begun, and waits for the row that sign-ins share, when something is written. */
const signInBehind = (
  server: TestService,
  { serviceId, key, secret }: Pick<Awaited<ReturnType<TestService["addService"]>>, "serviceId" | "key" | "secret">,
  write: QuerySqlToken,
) =>
  heldUp(
    server,
    sql.unsafe`SELECT FROM services WHERE svc_id = ${serviceId}::uuid FOR UPDATE`,
    () => server.services.authenticateService({ key, secret }),
    (tx) => tx.query(write),
  );

describe.each(transports)("%s: ending sessions", (transport) => {
  test.each(["disableService", "revokeServiceSecret"] as const)(
    "%s ends however many there are with bounded work, and the purge writes the rest",
    async (rpc) => {
      const service = await startService(transport);
      const { services, addService, as, pool } = service;
      const { serviceId, secretId, key, secret } = await addService(["service.read"]);
      await openMany(service, serviceId, secretId);
      const { serviceToken: token } = await services.authenticateService({ key, secret });
      const mine = as(token);
      await (rpc === "disableService"
        ? services.disableService({ serviceId })
        : services.revokeServiceSecret({ serviceId, secretId }));
      // As one of those that the revocation did not reach: the mark alone ends it.
      await pool.query(sql.type(anyRow)`
        UPDATE service_sessions SET revoked_utc = NULL WHERE svc_id = ${serviceId}::uuid AND token_hash_text <> 'x'`);
      await expectRefusal(mine.services.listServices({}), "CALLER_TOKEN_INVALID");
      expect((await services.verifyServiceToken({ serviceToken: token })).active).toBe(false);
      expect((await services.listServiceSessions({ serviceId })).sessions).toEqual([]);
      await services.enableService({ serviceId });
      await expectRefusal(mine.services.listServices({}), "CALLER_TOKEN_INVALID");
      const { sessions } = await services.listServiceSessions({ serviceId, includeEnded: true, pageSize: 1_000 });
      expect(sessions.every(({ revokeTime }) => revokeTime !== undefined)).toBe(true);
      expect(await notYetWritten(service, serviceId)).toBeGreaterThan(MANY / 2);

      const markedId = await lastNotYetWritten(service, serviceId);
      const endOf = async () => {
        const page = await services.listServiceSessions({ serviceId, includeEnded: true, pageSize: 1_000 });
        return page.sessions.find(({ sessionId }) => sessionId === markedId)?.revokeTime;
      };
      const end = await endOf();
      expect(end).toBeDefined();
      await services.revokeServiceSession({ selector: { case: "sessionId", value: markedId } });
      expect(await endOf()).toEqual(end);
      const revocations = { entityId: serviceId, action: "service.session.revoke" };
      expect((await service.org.listAuditEvents(revocations)).events).toEqual([]);

      await purgeNow(service);
      expect(await notYetWritten(service, serviceId)).toBe(0);
      expect(await endOf()).toEqual(end);
    },
  );

  test("what a secret's end has ended keeps that time when its service is disabled, and purged", async () => {
    const service = await startService(transport);
    const { services, addService } = service;
    const { serviceId, secretId } = await addService([]);
    await services.revokeServiceSecret({ serviceId, secretId });
    // As one that the revocation did not reach: the mark alone ends it.
    const unwrite = () =>
      service.pool.query(sql.type(anyRow)`
        UPDATE service_sessions SET revoked_utc = NULL WHERE svc_id = ${serviceId}::uuid`);
    await unwrite();
    const endsOf = async () => {
      const { sessions } = await services.listServiceSessions({ serviceId, includeEnded: true });
      return sessions.map(({ revokeTime }) => revokeTime);
    };
    const before = await endsOf();
    await services.disableService({ serviceId });
    expect(await endsOf()).toEqual(before);
    expect(before).toEqual([expect.anything()]);
    await unwrite();
    await purgeNow(service);
    expect(await endsOf()).toEqual(before);
  });

  test("a session that expired before its secret or its service ended is not called revoked", async () => {
    const service = await startService(transport);
    const { services, addService, pool } = service;
    const { serviceId, secretId } = await addService([]);
    await pool.query(sql.type(anyRow)`
        UPDATE service_sessions SET expiry_utc = clock_timestamp() WHERE svc_id = ${serviceId}::uuid`);
    const ends = [
      () => services.revokeServiceSecret({ serviceId, secretId }),
      () => services.disableService({ serviceId }),
      () => purgeNow(service),
    ];
    for (const end of ends) {
      await end();
      const { sessions } = await services.listServiceSessions({ serviceId, includeEnded: true });
      expect(sessions.map(({ revokeTime }) => revokeTime)).toEqual([undefined]);
    }
  });

  test("a service that is enabled again gets sessions that count, and that no purge ends", async () => {
    const service = await startService(transport);
    const { services, addService, as } = service;
    const { serviceId, key, secret } = await addService(["service.read"]);
    await services.disableService({ serviceId });
    await services.enableService({ serviceId });
    const { serviceToken } = await services.authenticateService({ key, secret });
    await as(serviceToken).services.listServices({});
    await purgeNow(service);
    const { sessions } = await services.listServiceSessions({ serviceId });
    expect(sessions).toHaveLength(1);
    const all = await services.listServiceSessions({ serviceId, includeEnded: true });
    expect(all.sessions.filter(({ revokeTime }) => revokeTime === undefined)).toEqual(sessions);
  });

  test("a purge ends what began at the very moment of the end, writes nothing into what lives, and waits for nobody", async () => {
    const service = await startService(transport);
    const { services, addService, pool } = service;
    const [ended, alive] = [await addService([]), await addService([])];
    await services.disableService({ serviceId: ended.serviceId });
    const revoked = await addService([]);
    await services.revokeServiceSecret({ serviceId: revoked.serviceId, secretId: revoked.secretId });
    await pool.query(sql.type(anyRow)`
      INSERT INTO service_sessions (svc_session_id, svc_id, secret_id, token_hash_text, expiry_utc, created_utc)
      SELECT gen_random_uuid(), y.svc_id, y.secret_id, 'x', now() + interval '1 day', coalesce(s.sessions_ended_utc, now())
      FROM service_secrets y JOIN services s ON s.svc_id = y.svc_id
      WHERE y.svc_id IN (${ended.serviceId}::uuid, ${revoked.serviceId}::uuid)`);
    const versions = () =>
      pool.any(sql.type(z.object({ version: z.string() }))`
        SELECT ctid::text AS version FROM service_sessions WHERE svc_id = ${alive.serviceId}::uuid`);
    const before = await versions();
    const lock = sql.unsafe`SELECT FROM service_sessions WHERE token_hash_text = 'x' FOR UPDATE`;
    await despite(service, lock, () => purgeNow(service));
    expect(await notYetWritten(service, ended.serviceId)).toBe(1);
    expect(await notYetWritten(service, revoked.serviceId)).toBe(1);
    await purgeNow(service);
    expect(await notYetWritten(service, ended.serviceId)).toBe(0);
    expect(await notYetWritten(service, revoked.serviceId)).toBe(0);
    expect(await versions()).toEqual(before);
  });

  test("a sign-in that began before a revocation and waited for it makes no session", async () => {
    const server = await startService(transport);
    const service = await server.addService([]);
    const revoke = sql.unsafe`
      UPDATE service_secrets SET revoked_utc = clock_timestamp() WHERE secret_id = ${service.secretId}::uuid`;
    await expectRefusal(signInBehind(server, service, revoke), "SERVICE_CREDENTIALS_INVALID");
  });

  test.each(["services", "service_secrets"] as const)(
    "a sign-in that waited for an end in %s opens no session, and is no use of its secret",
    async (table) => {
      const server = await startService(transport);
      const { serviceId, key } = await server.addService([]);
      const { secretId, secret } = await server.services.createServiceSecret({ serviceId });
      const end =
        table === "services"
          ? sql.unsafe`UPDATE services SET svc_state_code = 'disabled' WHERE svc_id = ${serviceId}::uuid`
          : sql.unsafe`UPDATE service_secrets SET revoked_utc = clock_timestamp() WHERE secret_id = ${secretId}::uuid`;
      await expectRefusal(signInBehind(server, { serviceId, key, secret }, end), "SERVICE_CREDENTIALS_INVALID");
      const { secrets } = await server.services.listServiceSecrets({ serviceId });
      expect(secrets.find((one) => one.secretId === secretId)).not.toHaveProperty("lastUsedTime");
    },
  );

  test("a sign-in that waited until its service was disabled and enabled again makes a session that counts", async () => {
    const server = await startService(transport);
    const service = await server.addService([]);
    const mark = sql.unsafe`
      UPDATE services SET sessions_ended_utc = clock_timestamp() WHERE svc_id = ${service.serviceId}::uuid`;
    const { serviceToken } = await signInBehind(server, service, mark);
    expect((await server.services.verifyServiceToken({ serviceToken })).active).toBe(true);
  });

  test("a session that is opened while its end waits is not called revoked before it began", async () => {
    const server = await startService(transport);
    const { serviceId, key, secret } = await server.addService([]);
    await heldUp(
      server,
      sql.unsafe`SELECT FROM services WHERE svc_id = ${serviceId}::uuid FOR SHARE`,
      () => server.services.disableService({ serviceId }),
      () => server.services.authenticateService({ key, secret }),
    );
    const { sessions } = await server.services.listServiceSessions({ serviceId, includeEnded: true });
    expect(sessions).toHaveLength(2);
    for (const { createTime, revokeTime } of sessions) {
      expect(timestampMs(revokeTime!)).toBeGreaterThanOrEqual(timestampMs(createTime!));
    }
  });

  test("a service has at most a hundred permissions, however they are granted", async () => {
    const { services, addService } = await startService(transport);
    const { serviceId } = await addService(Array.from({ length: 90 }, (_, n) => `a.p${n}`));
    const more = Array.from({ length: 11 }, (_, n) => `b.p${n}`);
    const { fields } = await expectRefusal(
      services.grantServicePermissions({ serviceId, permissions: more }),
      "INVALID_REQUEST",
    );
    expect(fields).toEqual(["permissions"]);
    const { service } = await services.grantServicePermissions({ serviceId, permissions: more.slice(1) });
    expect(service?.permissions).toHaveLength(100);
  });

  test("one that was loaded with more is granted again what it has, and nothing else", async () => {
    const { services, addService, pool } = await startService(transport);
    const { serviceId } = await addService([]);
    await pool.query(sql.type(anyRow)`
      INSERT INTO service_permissions (svc_id, perm_key)
      SELECT ${serviceId}::uuid, 'a.p' || n FROM generate_series(1, 101) n`);
    const { service } = await services.grantServicePermissions({ serviceId, permissions: ["a.p1"] });
    expect(service?.permissions).toHaveLength(101);
    const more = services.grantServicePermissions({ serviceId, permissions: ["a.p1", "b.p"] });
    expect((await expectRefusal(more, "INVALID_REQUEST")).fields).toEqual(["permissions"]);
  });

  test("so it is where they are granted at once", async () => {
    const { services, addService } = await startService(transport);
    const { serviceId } = await addService(Array.from({ length: 95 }, (_, n) => `a.p${n}`));
    const grants = Array.from({ length: 20 }, (_, n) =>
      services.grantServicePermissions({ serviceId, permissions: [`b.p${n}`] }),
    );
    const granted = (await Promise.allSettled(grants)).filter(({ status }) => status === "fulfilled");
    expect(granted).toHaveLength(5);
    const { service } = await services.getService({ selector: { case: "serviceId", value: serviceId } });
    expect(service?.permissions).toHaveLength(100);
  });
});
