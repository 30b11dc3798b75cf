import { timestampMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { heldUp } from "../support/held-up.ts";
import { expectRefusal } from "../support/refusals.ts";
import { launchForFile, launchService, startService, transports } from "../support/service.ts";

describe.each(transports)("%s: service sessions", (transport) => {
  test("a token is verified with what its service may do, and where", async () => {
    const { services, addService, addTenant } = await startService(transport);
    const tenantId = await addTenant();
    const { token, serviceId, key } = await addService(["org.node.*"], tenantId);
    const verify = (request: { permission?: string; tenantId?: string }) =>
      services.verifyServiceToken({ serviceToken: token, ...request });
    expect(await verify({})).toMatchObject({ active: true, allowed: true, serviceId, key, tenantId });
    expect(await verify({ permission: "org.node.read" })).toMatchObject({ active: true, allowed: true });
    const there = { permission: "org.node.read", tenantId: tenantId.toUpperCase() };
    expect(await verify(there)).toMatchObject({ active: true, allowed: true });
    expect(await verify({ permission: "org.node" })).toMatchObject({ active: true, allowed: false });
    expect(await verify({ permission: "org.role.read", tenantId })).toMatchObject({ active: true, allowed: false });
    expect(await verify({ tenantId: await addTenant() })).toMatchObject({ active: true, allowed: false });
    expect((await expectRefusal(verify({ permission: "org.*" }), "INVALID_REQUEST")).fields).toEqual(["permission"]);
    const unknown = await services.verifyServiceToken({ serviceToken: "nonsense" });
    expect(unknown).toMatchObject({ active: false, allowed: false, serviceId: "", permissions: [] });
  });

  test("a token that is remembered is good letter by letter, also where letters share a byte", async () => {
    const { services, addService } = await startService(transport);
    const { token } = await addService([]);
    const activeOf = async (serviceToken: string) => (await services.verifyServiceToken({ serviceToken })).active;
    const last = token.charCodeAt(token.length - 1);
    const start = token.slice(0, -1);
    const alike = [last ^ 1, last + 0x100, last + 0x2000].map((code) => start + String.fromCharCode(code));
    for (const other of [...alike, start, `${token}0`]) {
      // The second time it is compared with what is remembered: a letter that does not fit there must not stand for its end.
      expect([await activeOf(token), await activeOf(token)]).toEqual([true, true]);
      expect(await activeOf(other)).toBe(false);
    }
    expect(await activeOf(token)).toBe(true);
  });

  test("a tenant's service sees no other service's token as active", async () => {
    const { addService, addTenant, rootToken } = await startService(transport);
    const [here, there] = [await addTenant(), await addTenant()];
    const { services } = await addService(["service.verify"], here);
    const neighbour = await addService([], here);
    const stranger = await addService([], there);
    const activeOf = async (serviceToken: string) =>
      (await services.verifyServiceToken({ serviceToken, tenantId: here })).active;
    expect(await activeOf(neighbour.token)).toBe(true);
    expect(await activeOf(stranger.token)).toBe(false);
    expect(await activeOf(rootToken)).toBe(false);
    await expectRefusal(services.verifyServiceToken({ serviceToken: neighbour.token }), "TENANT_MISMATCH");
  });

  test("any caller ends its own sessions; another's needs service.write", async () => {
    const { services, org, addService, as } = await startService(transport);
    const mine = await addService(["org.tenant.read"]);
    const { serviceToken } = await services.authenticateService({ key: mine.key, secret: mine.secret });
    await mine.services.revokeServiceSession({ selector: { case: "serviceToken", value: serviceToken } });
    await expectRefusal(as(serviceToken).org.listTenants({}), "CALLER_TOKEN_INVALID");
    await mine.services.revokeServiceSession({ selector: { case: "serviceToken", value: serviceToken } });
    const other = await addService([]);
    const theirs = mine.services.revokeServiceSession({ selector: { case: "serviceToken", value: other.token } });
    await expectRefusal(theirs, "PERMISSION_MISSING");
    const writer = await addService(["service.write"]);
    const { sessions } = await services.listServiceSessions({ serviceId: other.serviceId });
    // So that it is remembered, and the revocation must make it forgotten.
    expect((await services.verifyServiceToken({ serviceToken: other.token })).active).toBe(true);
    await writer.services.revokeServiceSession({
      selector: { case: "sessionId", value: sessions[0]?.sessionId ?? "" },
    });
    expect((await services.verifyServiceToken({ serviceToken: other.token })).active).toBe(false);
    for (const value of ["nonsense", `${other.token}0`]) {
      const unknown = services.revokeServiceSession({ selector: { case: "serviceToken", value } });
      await expectRefusal(unknown, "SERVICE_SESSION_NOT_FOUND");
    }
    const gone = services.revokeServiceSession({ selector: { case: "sessionId", value: crypto.randomUUID() } });
    await expectRefusal(gone, "SERVICE_SESSION_NOT_FOUND");
    const { events } = await org.listAuditEvents({ entityId: mine.serviceId, action: "service.session.revoke" });
    expect(events).toHaveLength(1);
  });

  test("a token that is remembered is refused all the same once its own time is over", async () => {
    const { services, addService } = await startService(transport);
    const { key, secret } = await addService([]);
    const ttl = { seconds: 0n, nanos: 200_000_000 };
    const { serviceToken, expireTime } = await services.authenticateService({ key, secret, ttl });
    let lastAnswerAt = 0;
    const isActive = async () => {
      const sentAt = Date.now();
      const { active } = await services.verifyServiceToken({ serviceToken });
      if (active) lastAnswerAt = sentAt;
      return active;
    };
    await expect.poll(isActive, { interval: 5, timeout: 3_000 }).toBe(false);
    // The memory's second would have gone on for 0.8 s.
    expect(lastAnswerAt - timestampMs(expireTime!)).toBeLessThan(400);
  });

  test("a token is remembered from when its query was sent, however late that was answered", async () => {
    const server = await startService(transport);
    const { services, serviceId } = await server.addService(["service.read"]);
    const call = () => services.listServices({});
    await heldUp(server, sql.unsafe`LOCK TABLE service_sessions IN ACCESS EXCLUSIVE MODE`, call, () => {
      const sentBy = performance.now();
      return expect.poll(() => performance.now() - sentBy, { timeout: 3_000 }).toBeGreaterThan(1_000);
    });
    // As another replica does, of which nobody tells this one.
    await server.pool.query(sql.unsafe`
      UPDATE service_sessions SET revoked_utc = now() WHERE svc_id = ${serviceId}::uuid`);
    await expectRefusal(call(), "CALLER_TOKEN_INVALID");
  });

  test("a tenant's service cannot end, or learn of, a session outside of its tenant", async () => {
    const { services, addService, addTenant } = await startService(transport);
    const inside = await addService(["service.write"], await addTenant());
    const outside = await addService([]);
    const attempt = inside.services.revokeServiceSession({ selector: { case: "serviceToken", value: outside.token } });
    await expectRefusal(attempt, "SERVICE_SESSION_NOT_FOUND");
    expect((await services.verifyServiceToken({ serviceToken: outside.token })).active).toBe(true);
  });

  test("sessions are listed without the ended ones, or with them", async () => {
    const { services, addService, pool } = await startService(transport);
    const { serviceId, key, secret } = await addService([]);
    for (let n = 0; n < 4; n++) await services.authenticateService({ key, secret });
    const all = await services.listServiceSessions({ serviceId, includeEnded: true });
    const [newest] = all.sessions;
    await services.revokeServiceSession({ selector: { case: "sessionId", value: newest?.sessionId ?? "" } });
    const expired = all.sessions[1]?.sessionId ?? "";
    await pool.query(sql.unsafe`
      UPDATE service_sessions SET expiry_utc = now() - interval '1 second' WHERE svc_session_id = ${expired}::uuid`);
    const live = await services.listServiceSessions({ serviceId });
    const ended = await services.listServiceSessions({ serviceId, includeEnded: true });
    expect(live.sessions).toHaveLength(3);
    const liveIds = live.sessions.map(({ sessionId }) => sessionId);
    for (const id of [newest?.sessionId, expired]) expect(liveIds).not.toContain(id);
    expect(ended.sessions).toHaveLength(5);
    expect(ended.sessions[0]?.revokeTime).toBeDefined();
  });

  test("a session that has expired is not revoked any more", async () => {
    const { services, org, addService, pool } = await startService(transport);
    const { serviceId } = await addService([]);
    await pool.query(sql.unsafe`
      UPDATE service_sessions SET expiry_utc = clock_timestamp() WHERE svc_id = ${serviceId}::uuid`);
    const listed = () => services.listServiceSessions({ serviceId, includeEnded: true });
    const before = await listed();
    const { sessionId: value } = before.sessions[0]!;
    await services.revokeServiceSession({ selector: { case: "sessionId", value } });
    expect(await listed()).toEqual(before);
    expect((await org.listAuditEvents({ entityId: serviceId, action: "service.session.revoke" })).events).toEqual([]);
  });

  test("a revocation on one replica takes hold at once there, and within a second on another", async () => {
    const first = await launchService(transport);
    const second = await launchService(transport, { databaseUrl: first.databaseUrl });
    const service = await first.addService(["service.read"]);
    const there = second.as(service.token);
    const here = first.as(service.token);
    await there.services.listServices({});
    await here.services.listServices({});
    await first.services.revokeServicePermissions({ serviceId: service.serviceId, permissions: ["service.read"] });
    const revokedAt = performance.now();
    await expectRefusal(here.services.listServices({}), "PERMISSION_MISSING");
    let lastAnswerAt = revokedAt;
    const refusedThere = async () => {
      const sentAt = performance.now();
      const answered = await there.services.listServices({}).then(
        () => true,
        () => false,
      );
      if (answered) lastAnswerAt = sentAt;
      return answered;
    };
    await expect.poll(refusedThere, { interval: 5, timeout: 3_000 }).toBe(false);
    expect(lastAnswerAt - revokedAt).toBeLessThan(1_000);
    await second.stop();
    await first.stop();
  });
});

test("a token that could not be looked up is looked up again by the next call", async () => {
  const { pool, addService } = await launchForFile("grpc", { env: { DATABASE_STATEMENT_TIMEOUT: "500ms" } });
  const { services } = await addService(["service.read"]);
  await pool.transaction(async (tx) => {
    await tx.query(sql.unsafe`LOCK TABLE service_sessions`);
    await expectRefusal(services.listServices({}), "DATABASE_UNAVAILABLE");
  });
  expect((await services.listServices({})).services).not.toEqual([]);
});
