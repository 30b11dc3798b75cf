import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { createMacs } from "../../src/macs.ts";
import { heldUp } from "../support/held-up.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, launchService, startService, transports } from "../support/service.ts";
import { PEPPERS } from "../support/root.ts";
import { plantUser, signInBy } from "../support/sign-in.ts";

const UNKNOWN = "00000000-0000-7000-8000-000000000000";

const eventsOf = async ({ org }: TestService, entityId: string) => {
  const { events } = await org.listAuditEvents({ entityId });
  return events.map(({ action, payload }) => ({ action, payload }));
};

const expire = ({ pool }: TestService, sessionId: string) =>
  pool.query(sql.unsafe`UPDATE refresh_sessions SET expiry_utc = now() WHERE session_id = ${sessionId}::uuid`);

const networksOf = ({ pool }: TestService, userId: string) =>
  pool.any(sql.type(z.object({ network_hash: z.string(), age_s: z.number() }))`
    SELECT network_hash, extract(epoch FROM now() - last_login_utc)::float8 AS age_s
    FROM login_networks WHERE user_id = ${userId}::uuid`);

describe.each(transports)("%s", (transport) => {
  test("a login's session is listed with its client, and recorded with how it was proven", async () => {
    const service = await startService(transport);
    const client = { ip: "192.0.2.7", userAgent: "Ärzte/1.0" };
    const { tenantId, userId, sessionId } = await (await signInBy(service))({ client, method: "code" });
    const { sessions } = await service.auth.listSessions({ tenantId, userId });
    expect(sessions).toMatchObject([{ sessionId, userId, tenantId, client }]);
    const [session] = sessions;
    expect(session?.refreshTime).toEqual(session?.createTime);
    expect(Number(session!.expireTime!.seconds - session!.createTime!.seconds)).toBe(30 * 86_400);
    expect(session?.revokeTime).toBeUndefined();
    expect(await eventsOf(service, sessionId)).toMatchObject([
      { action: "auth.session.create", payload: { method: "code", user_id: userId } },
    ]);
  });

  test("sessions are listed newest first, page by page, those that ended only where they are asked for", async () => {
    const service = await startService(transport);
    const signIn = await signInBy(service);
    const first = await signIn();
    const { tenantId, userId } = first;
    const ids = [first.sessionId];
    for (let more = 0; more < 4; more++) ids.unshift((await signIn({ tenantId, userId })).sessionId);
    await service.auth.revokeSession({ tenantId, sessionId: ids[1]! });
    await expire(service, ids[3]!);
    const idsOf = async (includeEnded: boolean, pageSize: number) => {
      const found: string[] = [];
      let pageToken = "";
      do {
        const page = await service.auth.listSessions({ tenantId, userId, includeEnded, pageSize, pageToken });
        expect(page.sessions.length).toBeLessThanOrEqual(pageSize);
        found.push(...page.sessions.map(({ sessionId }) => sessionId));
        pageToken = page.nextPageToken;
      } while (pageToken !== "");
      return found;
    };
    expect(await idsOf(false, 2)).toEqual([ids[0], ids[2], ids[4]]);
    expect(await idsOf(true, 2)).toEqual(ids);
    expect(await idsOf(true, 5)).toEqual(ids);
    const { sessions } = await service.auth.listSessions({ tenantId, userId, includeEnded: true });
    expect(sessions[1]?.revokeTime).toBeDefined();
    expect(sessions[3]?.revokeTime).toBeUndefined();
    const { nextPageToken } = await service.auth.listSessions({ tenantId, userId, pageSize: 1 });
    const other = { tenantId, userId, includeEnded: true, pageToken: nextPageToken };
    await expectRefusal(service.auth.listSessions(other), "INVALID_REQUEST");
  });

  test("a user without sessions has an empty list, and one that the tenant does not have is USER_NOT_FOUND", async () => {
    const service = await startService(transport);
    const tenantId = await service.addTenant();
    const userId = await plantUser(service, tenantId);
    expect((await service.auth.listSessions({ tenantId, userId })).sessions).toEqual([]);
    const { userId: foreign } = await (await signInBy(service))();
    for (const unknown of [UNKNOWN, foreign]) {
      await expectRefusal(service.auth.listSessions({ tenantId, userId: unknown }), "USER_NOT_FOUND");
      await expectRefusal(service.auth.revokeAllSessions({ tenantId, userId: unknown }), "USER_NOT_FOUND");
    }
  });

  test("a revoked session's tokens are inactive at once; a repeat answers the same and writes nothing", async () => {
    const service = await startService(transport);
    const { tenantId, userId, sessionId, accessToken, refreshToken } = await (await signInBy(service))();
    await service.auth.revokeSession({ tenantId, sessionId });
    expect((await service.auth.verifyAccessToken({ accessToken })).active).toBe(false);
    await expectRefusal(service.auth.refreshSession({ refreshToken }), "SESSION_INVALID");
    const { sessions } = await service.auth.listSessions({ tenantId, userId, includeEnded: true });
    await service.auth.revokeSession({ tenantId, sessionId: sessionId.toUpperCase() });
    expect((await service.auth.listSessions({ tenantId, userId, includeEnded: true })).sessions).toEqual(sessions);
    expect(await eventsOf(service, sessionId)).toMatchObject([
      { action: "auth.session.revoke", payload: { user_id: userId } },
      { action: "auth.session.create" },
    ]);
  });

  test("an unknown session and another tenant's are SESSION_NOT_FOUND, and the latter lives on", async () => {
    const service = await startService(transport);
    const { sessionId, accessToken } = await (await signInBy(service))();
    const tenantId = await service.addTenant();
    for (const unknown of [UNKNOWN, sessionId]) {
      const { metadata } = await expectRefusal(
        service.auth.revokeSession({ tenantId, sessionId: unknown }),
        "SESSION_NOT_FOUND",
      );
      expect(metadata).toMatchObject({ session_id: unknown });
    }
    expect((await service.auth.verifyAccessToken({ accessToken })).active).toBe(true);
  });

  test("revoking all ends what lives and counts it, and is recorded where it ended something", async () => {
    const service = await startService(transport);
    const signIn = await signInBy(service);
    const { tenantId, userId } = await signIn();
    const second = await signIn({ tenantId, userId });
    const expired = await signIn({ tenantId, userId });
    await expire(service, expired.sessionId);
    const bystander = await signIn({ tenantId });
    expect((await service.auth.revokeAllSessions({ tenantId, userId })).revokedCount).toBe(2);
    expect((await service.auth.revokeAllSessions({ tenantId, userId })).revokedCount).toBe(0);
    expect((await service.auth.listSessions({ tenantId, userId })).sessions).toEqual([]);
    expect((await service.auth.verifyAccessToken({ accessToken: second.accessToken })).active).toBe(false);
    expect((await service.auth.verifyAccessToken({ accessToken: bystander.accessToken })).active).toBe(true);
    expect(await eventsOf(service, userId)).toMatchObject([
      { action: "auth.session.revoke_all", payload: { revoked_count: 2 } },
    ]);
    await signIn({ tenantId, userId });
    expect((await service.auth.revokeAllSessions({ tenantId, userId })).revokedCount).toBe(1);
  });
});

test("a sign-in that names its ids in upper case opens the same session, from the same network", async () => {
  const service = await startService("grpc");
  const signIn = await signInBy(service);
  const { tenantId, userId } = await signIn({ client: { ip: "192.0.2.7" } });
  const upper = { tenantId: tenantId.toUpperCase(), userId: userId.toUpperCase(), client: { ip: "192.0.2.7" } };
  const { accessToken } = await signIn(upper);
  expect(await service.auth.verifyAccessToken({ accessToken })).toMatchObject({ active: true, tenantId, userId });
  expect(await networksOf(service, userId)).toHaveLength(1);
});

test("20 revocations of one session at once are one", async () => {
  const service = await startService("grpc");
  const { tenantId, sessionId, refreshToken } = await (await signInBy(service))();
  await Promise.all(
    Array.from({ length: 20 }, (_, index) =>
      index % 2 === 0 ? service.auth.revokeSession({ tenantId, sessionId }) : service.auth.logout({ refreshToken }),
    ),
  );
  const actions = (await eventsOf(service, sessionId)).map(({ action }) => action);
  expect(actions).toEqual(["auth.session.revoke", "auth.session.create"]);
});

test("a login beyond the bound ends the oldest sessions that live, and its event names them", async () => {
  const service = await launchService("grpc", { env: { SESSIONS_PER_USER_MAX: "3" } });
  const signIn = await signInBy(service);
  const oldest = await signIn();
  const { tenantId, userId } = oldest;
  const second = await signIn({ tenantId, userId });
  const expired = await signIn({ tenantId, userId });
  await expire(service, expired.sessionId);
  const bystander = await signIn({ tenantId });
  const third = await signIn({ tenantId, userId });
  const last = await signIn({ tenantId, userId });
  const { sessions } = await service.auth.listSessions({ tenantId, userId });
  expect(sessions.map(({ sessionId }) => sessionId)).toEqual([last.sessionId, third.sessionId, second.sessionId]);
  expect(await eventsOf(service, last.sessionId)).toMatchObject([
    { payload: { ended_session_ids: [oldest.sessionId] } },
  ]);
  expect((await service.auth.verifyAccessToken({ accessToken: bystander.accessToken })).active).toBe(true);

  await Promise.all(Array.from({ length: 20 }, () => signIn({ tenantId, userId })));
  await signIn({ tenantId, userId });
  expect((await service.auth.listSessions({ tenantId, userId })).sessions).toHaveLength(3);
  await service.stop();
});

test("a network whose life is short is remembered anew before it is forgotten", async () => {
  const service = await launchService("grpc", { env: { KNOWN_NETWORK_LIFE: "1h" } });
  const signIn = await signInBy(service);
  const client = { ip: "192.0.2.7" };
  const { tenantId, userId } = await signIn({ client });
  await service.pool.query(sql.unsafe`
    UPDATE login_networks SET last_login_utc = now() - interval '7 minutes' WHERE user_id = ${userId}::uuid`);
  await signIn({ tenantId, userId, client });
  expect((await networksOf(service, userId))[0]?.age_s).toBeLessThan(300);
  await service.stop();
});

test("a login's network is remembered by its keyed hash, written at most once a day", async () => {
  const service = await startService("grpc");
  const signIn = await signInBy(service);
  const { tenantId, userId } = await signIn({ client: { ip: "192.0.2.7" } });
  const age = (interval: string) =>
    service.pool.query(sql.unsafe`
      UPDATE login_networks SET last_login_utc = now() - ${interval}::interval WHERE user_id = ${userId}::uuid`);
  await age("23 hours");
  await Promise.all(Array.from({ length: 20 }, () => signIn({ tenantId, userId, client: { ip: "192.0.2.9" } })));
  const [network, ...others] = await networksOf(service, userId);
  expect(others).toEqual([]);
  expect(network?.network_hash).toBe(createMacs(PEPPERS).tag("network", `${tenantId}:192.0.2.0/24`));
  expect(network?.age_s).toBeGreaterThan(82_000);
  await age("25 hours");
  await Promise.all(Array.from({ length: 20 }, () => signIn({ tenantId, userId, client: { ip: "192.0.2.9" } })));
  expect((await networksOf(service, userId))[0]?.age_s).toBeLessThan(600);
  await signIn({ tenantId, userId, client: { ip: "2001:db8::1" } });
  await signIn({ tenantId, userId });
  expect(await networksOf(service, userId)).toHaveLength(2);
});

test("a revocation that waits while its session ends writes nothing", async () => {
  const service = await startService("grpc");
  const { tenantId, sessionId } = await (await signInBy(service))();
  const row = sql.fragment`session_id = ${sessionId}::uuid`;
  await heldUp(
    service,
    sql.unsafe`SELECT FROM refresh_sessions WHERE ${row} FOR UPDATE`,
    () => service.auth.revokeSession({ tenantId, sessionId }),
    (tx) => tx.query(sql.unsafe`UPDATE refresh_sessions SET revoked_utc = now() WHERE ${row}`),
  );
  expect((await eventsOf(service, sessionId)).map(({ action }) => action)).toEqual(["auth.session.create"]);
});
