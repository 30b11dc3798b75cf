import { randomUUID } from "node:crypto";
import { Code } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { TenantState } from "../../src/gen/org/v1/org_pb.ts";
import { makeCredential } from "../../src/service-identity/credentials.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { startService, transports } from "../support/service.ts";
import { actionsOf } from "../support/users.ts";

const labels = (...paths: string[]) => ({ updateMask: { paths } });

describe.each(transports)("%s", (transport) => {
  test("a created tenant is active, and found as it was answered", async () => {
    const { org } = await startService(transport);
    const before = Date.now();
    const { tenant } = await org.createTenant({ label: "Ärzte & Söhne 😀" });
    expect(tenant).toMatchObject({ label: "Ärzte & Söhne 😀", state: TenantState.ACTIVE });
    expect(tenant?.tenantId).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    expect(Math.abs(Number(tenant?.createTime?.seconds) * 1_000 - before)).toBeLessThan(60_000);
    expect((await org.getTenant({ tenantId: tenant!.tenantId })).tenant).toEqual(tenant);
  });

  test("a tenant keeps the id that its creator chose, in lower case", async () => {
    const { org } = await startService(transport);
    const tenantId = randomUUID().toUpperCase();
    expect((await org.createTenant({ tenantId, label: "Acme" })).tenant?.tenantId).toBe(tenantId.toLowerCase());
    expect((await org.getTenant({ tenantId })).tenant?.label).toBe("Acme");
  });

  test("a repeated create answers as the first did and writes nothing, even after the tenant was suspended", async () => {
    const server = await startService(transport);
    const tenantId = randomUUID();
    const { tenant } = await server.org.createTenant({ tenantId, label: "Acme" });
    expect((await server.org.createTenant({ tenantId, label: "Acme" })).tenant).toEqual(tenant);
    await server.org.suspendTenant({ tenantId });
    const { tenant: again } = await server.org.createTenant({ tenantId: tenantId.toUpperCase(), label: "Acme" });
    expect(again).toEqual({ ...tenant, state: TenantState.SUSPENDED });
    expect(await actionsOf(server, tenantId)).toEqual(["org.tenant.suspend", "org.tenant.create"]);
  });

  test("a create with a known id and another content is refused and changes nothing", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant("Acme");
    const { metadata } = await expectRefusal(server.org.createTenant({ tenantId, label: "Other" }), "TENANT_ID_TAKEN");
    expect(metadata).toMatchObject({ tenant_id: tenantId });
    expect((await server.org.getTenant({ tenantId })).tenant?.label).toBe("Acme");
    expect(await actionsOf(server, tenantId)).toEqual(["org.tenant.create"]);
  });

  test("of 20 creates with one id at once all answer one tenant, with one event", async () => {
    const server = await startService(transport);
    const tenantId = randomUUID();
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => server.org.createTenant({ tenantId, label: "Acme" })),
    );
    for (const { tenant } of answers) expect(tenant).toEqual(answers[0]!.tenant);
    expect(await actionsOf(server, tenantId)).toEqual(["org.tenant.create"]);
  });

  test("of 20 creates with one id and 20 labels at once exactly one wins", async () => {
    const server = await startService(transport);
    const tenantId = randomUUID();
    const creates = Array.from({ length: 20 }, (_, n) => server.org.createTenant({ tenantId, label: `Tenant ${n}` }));
    const settled = await Promise.allSettled(creates);
    expect(settled.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    for (const { status, ...one } of settled) {
      if (status === "rejected") expect(one).toMatchObject({ reason: { code: Code.AlreadyExists } });
    }
    expect(await actionsOf(server, tenantId)).toEqual(["org.tenant.create"]);
  });

  test("tenants are listed by id, and by state where one is asked for", async () => {
    const { org, addTenant } = await startService(transport);
    const [active, suspended] = [await addTenant(), await addTenant()];
    await org.suspendTenant({ tenantId: suspended });
    const listed = async (state?: TenantState) => {
      const { tenants } = await org.listTenants({ pageSize: 1_000, ...(state && { state }) });
      expect(tenants.filter((tenant) => state !== undefined && tenant.state !== state)).toEqual([]);
      return tenants.map(({ tenantId }) => tenantId);
    };
    const all = await listed();
    expect(all).toEqual([...all].sort());
    expect(all).toEqual(expect.arrayContaining([active, suspended]));
    expect(await listed(TenantState.ACTIVE)).toContain(active);
    expect(await listed(TenantState.SUSPENDED)).toContain(suspended);
    expect((await expectRefusal(org.listTenants({ state: 0 }), "INVALID_REQUEST")).fields).toEqual(["state"]);
    expect((await expectRefusal(org.listTenants({ state: 9 as TenantState }), "INVALID_REQUEST")).fields).toEqual([
      "state",
    ]);
  });

  test("a tenant's service sees and renames its own tenant, and no other", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const { org } = await server.addService(["org.tenant.*"], tenantId);
    expect((await org.listTenants({})).tenants.map((tenant) => tenant.tenantId)).toEqual([tenantId]);
    expect((await org.listTenants({ state: TenantState.SUSPENDED })).tenants).toEqual([]);
    expect((await org.updateTenant({ tenantId, label: "Renamed" })).tenant?.label).toBe("Renamed");
    expect((await org.getTenant({ tenantId: tenantId.toUpperCase() })).tenant?.tenantId).toBe(tenantId);
    for (const request of [{ tenantId: other }, { tenantId: randomUUID() }]) {
      await expectRefusal(org.getTenant(request), "TENANT_MISMATCH");
      await expectRefusal(org.updateTenant({ ...request, label: "Renamed" }), "TENANT_MISMATCH");
    }
  });

  test("only a service without tenant creates, suspends and activates tenants", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant("Acme");
    const { org } = await server.addService(["*"], tenantId);
    await expectRefusal(org.createTenant({ label: "Mine" }), "TENANT_MISMATCH");
    await expectRefusal(org.createTenant({ tenantId, label: "Acme" }), "TENANT_MISMATCH");
    await expectRefusal(org.suspendTenant({ tenantId }), "TENANT_MISMATCH");
    await expectRefusal(org.activateTenant({ tenantId }), "TENANT_MISMATCH");
    expect(await actionsOf(server, tenantId)).not.toContain("org.tenant.suspend");
  });

  test("an update changes what its mask names, or without one what is sent", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant("One");
    const update = async (request: object) => (await server.org.updateTenant({ tenantId, ...request })).tenant?.label;
    expect(await update({ label: "Two" })).toBe("Two");
    expect(await update({ label: "Three", ...labels("label") })).toBe("Three");
    expect(await update({ label: "Four", ...labels("*") })).toBe("Four");
    expect(await update({ label: "Five", ...labels("label", "label") })).toBe("Five");
    expect(await update({ label: "Six", ...labels() })).toBe("Six");
    expect(await update({})).toBe("Six");
    // What says nothing new writes nothing.
    expect(await update({ label: "Six", ...labels("label") })).toBe("Six");
    expect((await actionsOf(server, tenantId)).filter((action) => action === "org.tenant.update")).toHaveLength(5);
  });

  test.each([
    [labels("name"), "update_mask"],
    [labels("label", "state"), "update_mask"],
    [labels("tenant_id"), "update_mask"],
    [{ label: "", ...labels("label") }, "label"],
    [{ label: "", ...labels("*") }, "label"],
    [{ label: "x".repeat(201) }, "label"],
    [{ label: "a\0b" }, "label"],
    [{ tenantId: "acme", label: "New" }, "tenant_id"],
  ])("an update with %j names the field %s", async (request, field) => {
    const server = await startService(transport);
    const tenantId = await server.addTenant("Acme");
    const updated = server.org.updateTenant({ tenantId, label: "New", ...request });
    expect((await expectRefusal(updated, "INVALID_REQUEST")).fields).toEqual([field]);
    expect((await server.org.getTenant({ tenantId })).tenant?.label).toBe("Acme");
  });

  test("suspending and activating answer the same again, with one event each", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    for (const state of [TenantState.SUSPENDED, TenantState.SUSPENDED]) {
      expect((await server.org.suspendTenant({ tenantId })).tenant).toMatchObject({ tenantId, state });
    }
    await Promise.all(Array.from({ length: 20 }, () => server.org.activateTenant({ tenantId })));
    expect((await server.org.getTenant({ tenantId })).tenant?.state).toBe(TenantState.ACTIVE);
    expect(await actionsOf(server, tenantId)).toEqual([
      "org.tenant.activate",
      "org.tenant.suspend",
      "org.tenant.create",
    ]);
  });

  test("an unknown tenant is not found", async () => {
    const { org } = await startService(transport);
    const tenantId = randomUUID();
    for (const call of [org.getTenant, org.suspendTenant, org.activateTenant]) {
      expect((await expectRefusal(call({ tenantId }), "TENANT_NOT_FOUND")).metadata).toMatchObject({
        tenant_id: tenantId,
      });
    }
    await expectRefusal(org.updateTenant({ tenantId, label: "New" }), "TENANT_NOT_FOUND");
  });

  test("a suspended tenant's services are refused at once, and served again at once", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const { org, token, key, secret, secretId } = await server.addService(["org.tenant.read"], tenantId);
    const own = { tenantId };
    const anonymous = server.as(undefined).services;
    const isActive = async () => (await server.services.verifyServiceToken({ serviceToken: token })).active;
    await org.getTenant(own);
    expect(await isActive()).toBe(true);

    await server.org.suspendTenant(own);
    expect((await expectRefusal(org.getTenant(own), "TENANT_SUSPENDED")).metadata).toMatchObject({
      tenant_id: tenantId,
    });
    expect(await isActive()).toBe(false);
    await expectRefusal(anonymous.authenticateService({ key, secret }), "TENANT_SUSPENDED");
    // Who has not proven the secret learns nothing of the tenant.
    for (const wrong of ["wrong", makeCredential("sks", secretId), makeCredential("sks", randomUUID())]) {
      await expectRefusal(anonymous.authenticateService({ key, secret: wrong }), "SERVICE_CREDENTIALS_INVALID");
    }

    await server.org.activateTenant(own);
    expect((await org.getTenant(own)).tenant?.state).toBe(TenantState.ACTIVE);
    expect(await isActive()).toBe(true);
    expect((await anonymous.authenticateService({ key, secret })).serviceToken).toMatch(/^skt_/);
  });

  test("a service without tenant still administers a suspended tenant", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const { serviceId } = await server.addService(["org.tenant.read"], tenantId);
    await server.org.suspendTenant({ tenantId });
    expect((await server.org.updateTenant({ tenantId, label: "Renamed" })).tenant).toMatchObject({
      label: "Renamed",
      state: TenantState.SUSPENDED,
    });
    expect((await server.services.listServices({ tenantId })).services.map((service) => service.serviceId)).toEqual([
      serviceId,
    ]);
    await server.addService([], tenantId).then(
      () => expect.fail("a suspended tenant's new service signed in"),
      async (error: unknown) => expect((await refused(Promise.reject(error as Error))).reason).toBe("TENANT_SUSPENDED"),
    );
    expect((await server.services.listServices({ tenantId })).services).toHaveLength(2);
    expect(await actionsOf(server, tenantId)).toContain("org.tenant.update");
  });
});
