import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, onTestFinished, test } from "vitest";
import { loggedLines } from "../support/logged-lines.ts";
import { expectRefusal } from "../support/refusals.ts";
import {
  type Clients,
  type TestService,
  launchService,
  startService,
  transports,
  uniqueKey,
} from "../support/service.ts";
import { type SignedIn, signInBy } from "../support/sign-in.ts";

/** One mutation of each service, in the tenant; answers with the id that its event names. */
const mutations: Record<string, (clients: Clients, root: TestService, tenantId: string) => Promise<string>> = {
  auth: async ({ auth }, root, tenantId) => {
    const { sessionId } = await (await signInBy(root))({ tenantId });
    await auth.revokeSession({ tenantId, sessionId });
    return sessionId;
  },
  org: async ({ org }, _, tenantId) => {
    await org.updateTenant({ tenantId, label: uniqueKey(), updateMask: { paths: ["label"] } });
    return tenantId;
  },
  "service identity": async ({ services }, _, tenantId) => {
    const key = uniqueKey();
    const { service } = await services.registerService({ tenantId, key, label: key, permissions: [] });
    return service!.serviceId;
  },
};

const reads: Record<string, (clients: Clients, tenantId: string) => Promise<unknown>> = {
  auth: ({ auth }, tenantId) => auth.listSessions({ tenantId, userId: tenantId }),
  org: ({ org }, tenantId) => org.getTenant({ tenantId }),
  "service identity": ({ services }) => services.getService({ selector: { case: "key", value: "root" } }),
};

/** Tokens that prove nobody, and how they come to be. */
const invalid: Record<string, (service: TestService, signedIn: SignedIn) => Promise<string> | string> = {
  "no token": () => "nobody",
  "an empty one": () => "",
  "a forged one": (_, { accessToken }) => `${accessToken.slice(0, -20)}${"A".repeat(20)}`,
  "one longer than a token may be": (_, { accessToken }) => `${accessToken}${"A".repeat(4_096)}`,
  "one of an ended session": async ({ auth }, { tenantId, sessionId, accessToken }) => {
    await auth.revokeSession({ tenantId, sessionId });
    return accessToken;
  },
  "one of a session that has expired": async ({ pool }, { sessionId, accessToken }) => {
    await pool.query(sql.unsafe`UPDATE refresh_sessions SET expiry_utc = now() WHERE session_id = ${sessionId}::uuid`);
    return accessToken;
  },
  "one of an inactive user": async ({ pool }, { userId, accessToken }) => {
    await pool.query(sql.unsafe`UPDATE users SET user_state_code = 'inactive' WHERE user_id = ${userId}::uuid`);
    return accessToken;
  },
  "one of a suspended tenant": async ({ org }, { tenantId, accessToken }) => {
    await org.suspendTenant({ tenantId });
    return accessToken;
  },
};

describe.each(transports)("%s", (transport) => {
  test.each(Object.keys(mutations))("%s: the event names the user whom the caller acted for", async (name) => {
    const service = await startService(transport);
    const { accessToken, userId, tenantId } = await (await signInBy(service))();
    const acting = service.as(service.rootToken, { "x-actor-token": accessToken });
    const entityId = await mutations[name]!(acting, service, tenantId);
    const { events } = await service.org.listAuditEvents({ entityId });
    expect(events[0]?.actorUserId).toBe(userId);
    expect(events[0]?.actorServiceId).toBeTruthy();
    const alone = await mutations[name]!(service, service, tenantId);
    expect((await service.org.listAuditEvents({ entityId: alone })).events[0]?.actorUserId).toBeUndefined();
  });

  test.each(Object.keys(invalid))("%s is refused by every service, never ignored", async (name) => {
    const service = await startService(transport);
    const signedIn = await (await signInBy(service))();
    const token = await invalid[name]!(service, signedIn);
    const acting = service.as(service.rootToken, { "x-actor-token": token });
    for (const call of Object.values(reads)) {
      await expectRefusal(call(acting, signedIn.tenantId), "ACTOR_TOKEN_INVALID");
    }
    const anonymous = service.as(undefined, { "x-actor-token": token });
    await expectRefusal(anonymous.auth.getJwks({}), "ACTOR_TOKEN_INVALID");
    const wrong = anonymous.services.authenticateService({ key: "root", secret: "x" });
    await expectRefusal(wrong, "ACTOR_TOKEN_INVALID");
  });

  test("a user of another tenant than the request's is refused", async () => {
    const service = await startService(transport);
    const { accessToken } = await (await signInBy(service))();
    const tenantId = await service.addTenant();
    const acting = service.as(service.rootToken, { "x-actor-token": accessToken });
    await expectRefusal(reads["auth"]!(acting, tenantId), "ACTOR_TOKEN_INVALID");
    await expectRefusal(reads["org"]!(acting, tenantId), "ACTOR_TOKEN_INVALID");
  });

  test("no user is of a tenant that is only being made, whether or not the request chooses its id", async () => {
    const service = await startService(transport);
    const { accessToken, tenantId } = await (await signInBy(service))();
    const acting = service.as(service.rootToken, { "x-actor-token": accessToken });
    const label = uniqueKey();
    await expectRefusal(acting.org.createTenant({ label }), "ACTOR_TOKEN_INVALID");
    await expectRefusal(acting.org.createTenant({ tenantId: randomUUID(), label }), "ACTOR_TOKEN_INVALID");
    const { tenant } = await service.org.getTenant({ tenantId });
    expect((await acting.org.createTenant({ tenantId, label: tenant!.label })).tenant?.tenantId).toBe(tenantId);
  });

  test("a user of another tenant than that of the service or session that a request is about is refused", async () => {
    const service = await startService(transport);
    const signIn = await signInBy(service);
    const { accessToken } = await signIn();
    const { refreshToken, accessToken: theirs, sessionId, tenantId } = await signIn();
    const { serviceId, secretId, key, token } = await service.addService([], tenantId);
    const { auth, services } = service.as(service.rootToken, { "x-actor-token": accessToken });
    const permissions = ["org.node.read"];
    const calls = [
      services.getService({ selector: { case: "serviceId", value: serviceId } }),
      services.getService({ selector: { case: "key", value: key } }),
      services.registerService({ serviceId, key, label: key }),
      services.updateService({ serviceId, label: "X" }),
      services.disableService({ serviceId }),
      services.enableService({ serviceId }),
      services.createServiceSecret({ serviceId }),
      services.rotateServiceSecret({ serviceId }),
      services.revokeServiceSecret({ serviceId, secretId }),
      services.listServiceSecrets({ serviceId }),
      services.grantServicePermissions({ serviceId, permissions }),
      services.revokeServicePermissions({ serviceId, permissions }),
      services.revokeServiceSession({ selector: { case: "serviceToken", value: token } }),
      services.listServiceSessions({ serviceId }),
      services.verifyServiceToken({ serviceToken: token }),
      auth.verifyAccessToken({ accessToken: theirs }),
      auth.refreshSession({ refreshToken }),
      auth.logout({ refreshToken }),
    ];
    await Promise.all(calls.map((call) => expectRefusal(call, "ACTOR_TOKEN_INVALID")));
    for (const entityId of [serviceId, sessionId]) {
      const { events } = await service.org.listAuditEvents({ entityId });
      expect(events.map(({ action }) => action)).not.toContainEqual(expect.stringMatching(/update|able|revoke|secret/));
    }
    expect((await service.auth.refreshSession({ refreshToken })).tokens?.sessionId).toBe(sessionId);
  });

  test("where a request names the actor's tenant, a token of another tenant's service is one that may not act there", async () => {
    const service = await startService(transport);
    const { accessToken, tenantId } = await (await signInBy(service))();
    const { token: serviceToken } = await service.addService([], await service.addTenant());
    const { services } = service.as(service.rootToken, { "x-actor-token": accessToken });
    const verified = await services.verifyServiceToken({ serviceToken, tenantId });
    expect(verified).toMatchObject({ active: true, allowed: false });
  });

  test("where a registration names the actor's tenant, the id of another tenant's service is taken", async () => {
    const service = await startService(transport);
    const { accessToken, tenantId } = await (await signInBy(service))();
    const { serviceId, key } = await service.addService([], await service.addTenant());
    const { services } = service.as(service.rootToken, { "x-actor-token": accessToken });
    await expectRefusal(services.registerService({ serviceId, tenantId, key, label: key }), "SERVICE_ID_TAKEN");
  });

  test("a tenant's service acts for its own tenant's users alone, whatever the request is about", async () => {
    const service = await startService(transport);
    const signIn = await signInBy(service);
    const [{ accessToken }, own] = [await signIn(), await signIn()];
    const { token } = await service.addService(["*"], own.tenantId);
    const acting = service.as(token, { "x-actor-token": accessToken });
    const tokenOfAnother = acting.services.revokeServiceSession({ selector: { case: "serviceToken", value: token } });
    await expectRefusal(tokenOfAnother, "ACTOR_TOKEN_INVALID");
    await expectRefusal(acting.auth.verifyAccessToken({ accessToken: own.accessToken }), "ACTOR_TOKEN_INVALID");
    await expectRefusal(acting.org.listCapabilities({}), "ACTOR_TOKEN_INVALID");
    await service.as(token, { "x-actor-token": own.accessToken }).org.listCapabilities({});
  });

  test("where neither a request nor its caller names a tenant, a caller may act for a user of any", async () => {
    const service = await startService(transport);
    const { accessToken, userId } = await (await signInBy(service))();
    const { org, services } = service.as(service.rootToken, { "x-actor-token": accessToken });
    await org.listCapabilities({});
    await services.listServices({});
    const key = uniqueKey();
    const { service: registered } = await services.registerService({ key, label: key });
    const { events } = await service.org.listAuditEvents({ entityId: registered!.serviceId });
    expect(events[0]?.actorUserId).toBe(userId);
  });

  test("a tenant is the caller's and the actor's own in whichever case it is named", async () => {
    const service = await startService(transport);
    const { accessToken, tenantId } = await (await signInBy(service))();
    const { token } = await service.addService(["org.tenant.read"], tenantId);
    const { org } = service.as(token, { "x-actor-token": accessToken });
    const { tenant } = await org.getTenant({ tenantId: tenantId.toUpperCase() });
    expect(tenant?.tenantId).toBe(tenantId);
  });

  test("an actor grants no rights", async () => {
    const service = await startService(transport);
    const { accessToken, tenantId } = await (await signInBy(service))();
    const { token } = await service.addService(["org.tenant.read"], tenantId);
    const acting = service.as(token, { "x-actor-token": accessToken });
    await acting.org.getTenant({ tenantId });
    await expectRefusal(acting.auth.listSessions({ tenantId, userId: tenantId }), "PERMISSION_MISSING");
  });
});

test("a call's line names the user for whom the caller acted", async () => {
  const logged = loggedLines();
  const server = await launchService("grpc", { log: logged.log });
  onTestFinished(() => server.stop());
  const { accessToken, userId, tenantId } = await (await signInBy(server))();
  const headers = { "x-actor-token": accessToken, "x-request-id": "acted" };
  await server.as(server.rootToken, headers).org.getTenant({ tenantId });
  expect(logged.of("acted")).toMatchObject([{ service: "root", actor_user_id: userId }]);
});
