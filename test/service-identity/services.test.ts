import { describe, expect, test } from "vitest";
import { ServiceState } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { expectRefusal } from "../support/refusals.ts";
import { launchService, startService, transports, uniqueKey } from "../support/service.ts";

const UNKNOWN = "018f0000-0000-7000-8000-000000000000";

describe.each(transports)("%s: services", (transport) => {
  test("a registered service is found by its id and by its key, with its permissions in order", async () => {
    const { services } = await startService(transport);
    const key = uniqueKey();
    const { service, secret, secretId } = await services.registerService({
      key,
      label: "Menu",
      permissions: ["org.node.read", "auth.login"],
    });
    expect(service).toMatchObject({ key, label: "Menu", state: ServiceState.ACTIVE });
    expect(service?.permissions).toEqual(["auth.login", "org.node.read"]);
    expect(service?.tenantId).toBeUndefined();
    expect(secret).toMatch(new RegExp(`^sks_${secretId}_[0-9A-Za-z]{43}_[0-9a-f]{8}$`));
    const byKey = await services.getService({ selector: { case: "key", value: key } });
    const byId = await services.getService({ selector: { case: "serviceId", value: service?.serviceId ?? "" } });
    expect(byKey.service).toEqual(service);
    expect(byId.service).toEqual(service);
  });

  test("a repeated registration answers as the first did, without the secret, and writes nothing", async () => {
    const { services, org } = await startService(transport);
    const { service } = await services.registerService({ key: uniqueKey(), label: "A", permissions: [] });
    const entityId = crypto.randomUUID();
    const request = { serviceId: entityId, key: uniqueKey(), label: "B", permissions: ["org.*", "auth.login"] };
    const first = await services.registerService(request);
    const again = await services.registerService({ ...request, permissions: ["auth.login", "org.*"] });
    expect(again).toEqual({ ...first, secret: "" });
    await expectRefusal(services.registerService({ ...request, label: "C" }), "SERVICE_ID_TAKEN");
    await expectRefusal(services.registerService({ ...request, permissions: ["org.*"] }), "SERVICE_ID_TAKEN");
    const taken = services.registerService({ key: service?.key ?? "", label: "A", permissions: [] });
    await expectRefusal(taken, "SERVICE_KEY_TAKEN");
    const newId = { serviceId: crypto.randomUUID(), permissions: [], label: "A" };
    await expectRefusal(services.registerService({ ...newId, key: request.key }), "SERVICE_KEY_TAKEN");
    const { events } = await org.listAuditEvents({ entityId });
    expect(events.map(({ action }) => action)).toEqual(["service.register"]);
  });

  test("nobody learns of a service that may do more than he by registering it again", async () => {
    const { services, addService, addTenant } = await startService(transport);
    const tenantId = await addTenant();
    const request = { serviceId: crypto.randomUUID(), key: uniqueKey(), label: "A", tenantId };
    const { service, secretId } = await services.registerService({ ...request, permissions: ["auth.login"] });
    const lesser = await addService(["service.write"], tenantId);
    for (const label of ["A", "B"])
      await expectRefusal(lesser.services.registerService({ ...request, label }), "PERMISSION_ESCALATION");
    const equal = await addService(["service.write", "auth.*"], tenantId);
    expect(await equal.services.registerService(request)).toMatchObject({ service, secretId, secret: "" });
    await expectRefusal(equal.services.registerService({ ...request, label: "B" }), "SERVICE_ID_TAKEN");
  });

  test("of twenty registrations with one id at once, one makes the service and all answer it", async () => {
    const { services, org } = await startService(transport);
    const serviceId = crypto.randomUUID();
    const request = { serviceId, key: uniqueKey(), label: "Race", permissions: ["auth.login"] };
    const answers = await Promise.all(Array.from({ length: 20 }, () => services.registerService(request)));
    expect(new Set(answers.map(({ secretId }) => secretId)).size).toBe(1);
    expect(answers.filter(({ secret }) => secret !== "")).toHaveLength(1);
    expect((await org.listAuditEvents({ entityId: serviceId })).events).toHaveLength(1);
  });

  test("an update changes the label alone, and records it once", async () => {
    const { services, org, addService } = await startService(transport);
    const { serviceId, key } = await addService(["auth.login"]);
    const { service } = await services.updateService({ serviceId, label: "New", updateMask: { paths: ["label"] } });
    expect(service).toMatchObject({ key, label: "New", permissions: ["auth.login"] });
    await services.updateService({ serviceId, label: "New" });
    const { events } = await org.listAuditEvents({ entityId: serviceId, action: "service.update" });
    expect(events).toHaveLength(1);
    expect(events[0]?.payload).toMatchObject({ fields: ["label"] });
    const unknown = await expectRefusal(
      services.updateService({ serviceId, label: "X", updateMask: { paths: ["key"] } }),
      "INVALID_REQUEST",
    );
    expect(unknown.fields).toEqual(["update_mask"]);
    const empty = await expectRefusal(
      services.updateService({ serviceId, updateMask: { paths: ["label"] } }),
      "INVALID_REQUEST",
    );
    expect(empty.fields).toEqual(["label"]);
  });

  test("disabling ends every session at once; enabling brings back the secrets, not the sessions", async () => {
    const { services, addService } = await startService(transport);
    const service = await addService(["service.read"]);
    await service.services.listServices({});
    const { service: disabled } = await services.disableService({ serviceId: service.serviceId });
    expect(disabled?.state).toBe(ServiceState.DISABLED);
    await expectRefusal(service.services.listServices({}), "CALLER_TOKEN_INVALID");
    const signIn = { key: service.key, secret: service.secret };
    await expectRefusal(services.authenticateService(signIn), "SERVICE_CREDENTIALS_INVALID");
    await services.enableService({ serviceId: service.serviceId });
    await expectRefusal(service.services.listServices({}), "CALLER_TOKEN_INVALID");
    expect((await services.authenticateService(signIn)).permissions).toEqual(["service.read"]);
  });

  test("nobody hands out, changes or takes over what he lacks", async () => {
    const { services: root, addService } = await startService(transport);
    const { services: weak } = await addService(["service.*", "org.node.read"]);
    const strong = await addService(["org.node.write"]);
    const { serviceId } = strong;
    const { secretId } = strong;
    const register = { key: uniqueKey(), label: "X", permissions: ["org.node.*"] };
    const attempts = [
      weak.registerService(register),
      weak.updateService({ serviceId, label: "X" }),
      weak.disableService({ serviceId }),
      weak.enableService({ serviceId }),
      weak.createServiceSecret({ serviceId }),
      weak.rotateServiceSecret({ serviceId }),
      weak.revokeServiceSecret({ serviceId, secretId }),
      weak.revokeServicePermissions({ serviceId, permissions: ["org.node.write"] }),
      weak.grantServicePermissions({ serviceId, permissions: ["org.node.read"] }),
    ];
    await Promise.all(attempts.map((attempt) => expectRefusal(attempt, "PERMISSION_ESCALATION")));
    const own = await addService(["org.node.read"]);
    const beyond = weak.grantServicePermissions({ serviceId: own.serviceId, permissions: ["org.*"] });
    expect((await expectRefusal(beyond, "PERMISSION_ESCALATION")).metadata).toMatchObject({ permission: "org.*" });
    const { service } = await root.getService({ selector: { case: "serviceId", value: serviceId } });
    expect(service).toMatchObject({ state: ServiceState.ACTIVE, permissions: ["org.node.write"] });
  });

  test("to a tenant's service, other tenants' and tenantless services do not exist", async () => {
    const { addService, addTenant } = await startService(transport);
    const [here, there] = [await addTenant(), await addTenant()];
    const { services } = await addService(["service.*"], here);
    const strangers = [await addService([], there), await addService([])];
    for (const { serviceId, secretId, key } of strangers) {
      const attempts = [
        services.getService({ selector: { case: "serviceId", value: serviceId } }),
        services.getService({ selector: { case: "key", value: key } }),
        services.updateService({ serviceId, label: "X" }),
        services.disableService({ serviceId }),
        services.enableService({ serviceId }),
        services.createServiceSecret({ serviceId }),
        services.rotateServiceSecret({ serviceId }),
        services.revokeServiceSecret({ serviceId, secretId }),
        services.listServiceSecrets({ serviceId }),
        services.listServiceSessions({ serviceId }),
        services.grantServicePermissions({ serviceId, permissions: ["service.read"] }),
        services.revokeServicePermissions({ serviceId, permissions: ["service.read"] }),
      ];
      await Promise.all(attempts.map((attempt) => expectRefusal(attempt, "SERVICE_NOT_FOUND")));
    }
    await expectRefusal(services.listServices({ tenantId: there }), "TENANT_MISMATCH");
    await expectRefusal(services.listServices({}), "TENANT_MISMATCH");
    const elsewhere = services.registerService({ key: uniqueKey(), label: "X", permissions: [], tenantId: there });
    await expectRefusal(elsewhere, "TENANT_MISMATCH");
    await expectRefusal(services.registerService({ key: uniqueKey(), label: "X", permissions: [] }), "TENANT_MISMATCH");
    const own = await addService([], here);
    for (const selector of [
      { case: "serviceId", value: own.serviceId },
      { case: "key", value: own.key },
    ] as const) {
      expect((await services.getService({ selector })).service?.serviceId).toBe(own.serviceId);
    }
    const listed = await services.listServices({ tenantId: here });
    expect(listed.services.every(({ tenantId }) => tenantId === here)).toBe(true);
  });

  test("an unknown service, or tenant, is named as not found", async () => {
    const { services } = await startService(transport);
    const unknown = services.getService({ selector: { case: "serviceId", value: UNKNOWN } });
    expect((await expectRefusal(unknown, "SERVICE_NOT_FOUND")).metadata).toMatchObject({ service_id: UNKNOWN });
    await expectRefusal(services.disableService({ serviceId: UNKNOWN }), "SERVICE_NOT_FOUND");
    const orphan = services.registerService({ key: uniqueKey(), label: "X", permissions: [], tenantId: UNKNOWN });
    await expectRefusal(orphan, "TENANT_NOT_FOUND");
  });

  test("the last root can be neither disabled nor stripped, and two cannot end each other", async () => {
    const service = await launchService(transport);
    const { services } = service;
    const { service: root } = await services.getService({ selector: { case: "key", value: "root" } });
    const rootId = root?.serviceId ?? "";
    // An id is the same in either case.
    for (const serviceId of [rootId, rootId.toUpperCase()]) {
      const strip = { serviceId, permissions: ["*"] };
      await expectRefusal(services.disableService({ serviceId }), "LAST_ROOT_SERVICE");
      await expectRefusal(services.revokeServicePermissions(strip), "LAST_ROOT_SERVICE");
    }
    const tenantId = await service.addTenant();
    await service.addService(["*"], tenantId);
    await expectRefusal(services.disableService({ serviceId: rootId }), "LAST_ROOT_SERVICE");
    let survivor = { serviceId: rootId, services };
    for (let round = 0; round < 20; round++) {
      const key = uniqueKey();
      const { service: made, secret } = await survivor.services.registerService({
        key,
        label: key,
        permissions: ["*"],
      });
      const { serviceToken } = await services.authenticateService({ key, secret });
      const rival = { serviceId: made?.serviceId ?? "", services: service.as(serviceToken).services };
      const strikes = await Promise.allSettled([
        survivor.services.disableService({ serviceId: rival.serviceId }),
        rival.services.revokeServicePermissions({ serviceId: survivor.serviceId, permissions: ["*"] }),
      ]);
      expect(strikes.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
      if (strikes[1].status === "fulfilled") survivor = rival;
    }
    await service.stop();
  });
});
