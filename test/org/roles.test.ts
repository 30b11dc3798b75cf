import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { startBoth } from "../support/both-transports.ts";
import { expectRefusal } from "../support/refusals.ts";
import { addCapabilities, addRole, uniqueCapability, uniqueLabel } from "../support/roles.ts";
import { bearer } from "../support/rpcs.ts";
import { clientsOf, startService, transports } from "../support/service.ts";
import { actionsOf, eventsOf, outcomes } from "../support/users.ts";
import { plantUnchecked } from "../support/admin.ts";

const mask = (...paths: string[]) => ({ updateMask: { paths } });

describe.each(transports)("%s", (transport) => {
  test("a created role is found as it was answered, its capabilities once and in the order of their bytes", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [b, a, dotted] = await addCapabilities(server, "b", "a_a", "a.a");
    const label = "Ärztin & Köche 😀";
    const { role } = await server.org.createRole({ tenantId, label, capabilityKeys: [b!, a!, b!, dotted!, a!] });
    expect(role).toMatchObject({ tenantId, label, capabilityKeys: [dotted, a, b] });
    expect(role?.roleId).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    expect(Math.abs(Number(role?.createTime?.seconds) * 1_000 - Date.now())).toBeLessThan(60_000);
    const { roleId } = role!;
    expect((await server.org.getRole({ tenantId: tenantId.toUpperCase(), roleId: roleId.toUpperCase() })).role).toEqual(
      role,
    );
    const [event] = await eventsOf(server, roleId);
    expect(event).toMatchObject({
      action: "org.role.create",
      tenantId,
      entityKind: "role",
      payload: { capability_keys: [dotted, a, b] },
    });
    expect(JSON.stringify(event?.payload)).not.toContain("Ärztin");
  });

  test("a repeated create answers as the first did and writes nothing; another content is refused", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const [edit, view] = await addCapabilities(server, "edit", "view");
    const request = { tenantId, roleId: randomUUID(), label: "Cook", capabilityKeys: [view!, edit!] };
    const first = await server.org.createRole(request);
    expect(await server.org.createRole(request)).toEqual(first);
    expect(await server.org.createRole({ ...request, roleId: request.roleId.toUpperCase() })).toEqual(first);
    expect(await server.org.createRole({ ...request, capabilityKeys: [edit!, view!, edit!] })).toEqual(first);
    expect(await server.org.createRole({ ...request, capabilityKeys: [] })).toEqual(first);
    const gone = uniqueCapability();
    const others = [{ label: "Chef" }, { capabilityKeys: [edit!] }, { capabilityKeys: [gone] }, { tenantId: other }];
    for (const content of others) {
      const { metadata } = await expectRefusal(server.org.createRole({ ...request, ...content }), "ROLE_ID_TAKEN");
      expect(metadata).toMatchObject({ role_id: request.roleId });
    }
    expect(await actionsOf(server, request.roleId)).toEqual(["org.role.create"]);
  });

  test("a label is one role's in its tenant, and any other's elsewhere", async () => {
    const server = await startService(transport);
    const { tenantId } = await addRole(server, { label: "Cook" });
    await expectRefusal(server.org.createRole({ tenantId, label: "Cook" }), "ROLE_LABEL_TAKEN");
    await expectRefusal(server.org.createRole({ tenantId, label: "Cook", roleId: randomUUID() }), "ROLE_LABEL_TAKEN");
    expect((await addRole(server, { tenantId, label: "cook" })).label).toBe("cook");
    expect((await addRole(server, { label: "Cook" })).label).toBe("Cook");
    expect((await server.org.listRoles({ tenantId })).roles).toHaveLength(2);
  });

  test("an unknown tenant, capability or role is refused, and nothing is written", async () => {
    const { org, addTenant } = await startService(transport);
    const [tenantId, roleId] = [await addTenant(), randomUUID()];
    const known = { tenantId, roleId };
    const lost = org.createRole({ ...known, tenantId: randomUUID(), label: "Cook" });
    await expectRefusal(lost, "TENANT_NOT_FOUND");
    const unknown = [uniqueCapability(), uniqueCapability()].sort();
    const create = org.createRole({ ...known, label: "Cook", capabilityKeys: unknown.toReversed() });
    expect((await expectRefusal(create, "CAPABILITY_NOT_FOUND")).metadata).toMatchObject({ key: unknown[0] });
    const capabilityKeys = unknown;
    for (const call of [
      () => org.getRole(known),
      () => org.updateRole({ ...known, label: "Cook" }),
      () => org.deleteRole(known),
      () => org.addRoleCapabilities({ ...known, capabilityKeys }),
      () => org.removeRoleCapabilities({ ...known, capabilityKeys }),
    ]) {
      expect((await expectRefusal(call(), "ROLE_NOT_FOUND")).metadata).toMatchObject({ role_id: roleId });
    }
    expect((await org.listRoles({ tenantId })).roles).toEqual([]);
    expect((await org.listRoles({ tenantId: randomUUID() })).roles).toEqual([]);
  });

  test("another tenant's role is unknown, also to who serves all tenants", async () => {
    const server = await startService(transport);
    const [edit] = await addCapabilities(server, "edit");
    const role = await addRole(server, { capabilityKeys: [edit!] });
    const foreign = { tenantId: await server.addTenant(), roleId: role.roleId };
    await expectRefusal(server.org.getRole(foreign), "ROLE_NOT_FOUND");
    await expectRefusal(server.org.updateRole({ ...foreign, label: "Mine" }), "ROLE_NOT_FOUND");
    await expectRefusal(server.org.deleteRole(foreign), "ROLE_NOT_FOUND");
    await expectRefusal(server.org.removeRoleCapabilities({ ...foreign, capabilityKeys: [edit!] }), "ROLE_NOT_FOUND");
    await expectRefusal(server.org.addRoleCapabilities({ ...foreign, capabilityKeys: [edit!] }), "ROLE_NOT_FOUND");
    const { org } = await server.addService(["org.role.*"], foreign.tenantId);
    await expectRefusal(org.getRole(foreign), "ROLE_NOT_FOUND");
    const own = { tenantId: role.tenantId, roleId: role.roleId };
    await expectRefusal(org.getRole(own), "TENANT_MISMATCH");
    expect((await server.org.getRole(own)).role).toEqual(role);
  });

  test("what keeps no rule is refused by its field", async () => {
    const server = await startService(transport);
    const [edit] = await addCapabilities(server, "edit");
    const { tenantId, roleId } = await addRole(server);
    const { org } = server;
    const fieldsOf = async (call: Promise<unknown>) => (await expectRefusal(call, "INVALID_REQUEST")).fields;
    for (const label of ["", "x".repeat(201), "a\0b"]) {
      expect(await fieldsOf(org.createRole({ tenantId, label }))).toEqual(["label"]);
      if (label) expect(await fieldsOf(org.updateRole({ tenantId, roleId, label }))).toEqual(["label"]);
    }
    expect(await fieldsOf(org.updateRole({ tenantId, roleId, ...mask("label") }))).toEqual(["label"]);
    expect(await fieldsOf(org.updateRole({ tenantId, roleId, label: "x", ...mask("tenant_id") }))).toEqual([
      "update_mask",
    ]);
    const request = { tenantId, roleId, label: "x", capabilityKeys: [edit!, "No"] };
    const many = { ...request, capabilityKeys: Array.from({ length: 1_001 }, () => edit!) };
    const none = { ...request, capabilityKeys: [] };
    for (const write of ["createRole", "updateRole", "addRoleCapabilities", "removeRoleCapabilities"] as const) {
      expect(await fieldsOf(org[write](request))).toEqual(["capability_keys[1]"]);
      expect(await fieldsOf(org[write](many))).toEqual(["capability_keys"]);
      if (write.endsWith("Capabilities")) expect(await fieldsOf(org[write](none))).toEqual(["capability_keys"]);
      expect(await fieldsOf(org[write]({ ...request, capabilityKeys: [edit!], roleId: "x" }))).toEqual(["role_id"]);
    }
    expect(await fieldsOf(org.listRoles({ tenantId, pageToken: "x" }))).toEqual(["page_token"]);
    expect(await fieldsOf(org.listRoles({ tenantId, pageSize: -1 }))).toEqual(["page_size"]);
  });

  test("roles are listed by id, each once", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [edit] = await addCapabilities(server, "edit");
    const roles = await Promise.all(
      Array.from({ length: 7 }, (_, n) => addRole(server, { tenantId, capabilityKeys: n % 2 ? [edit!] : [] })),
    );
    const seen = [];
    let pageToken = "";
    do {
      const page = await server.org.listRoles({ tenantId, pageSize: 3, pageToken });
      expect(page.roles.length).toBeLessThanOrEqual(3);
      seen.push(...page.roles);
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(seen).toEqual(roles.toSorted((one, other) => (one.roleId < other.roleId ? -1 : 1)));
    expect((await server.org.listRoles({ tenantId, pageSize: 7 })).nextPageToken).toBe("");
  });
});

test("a page of roles with very many capabilities is short, and its size is one that clients take", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const space = uniqueCapability("x".repeat(100));
  await plantUnchecked(server, async (tx) => {
    await tx.query(sql.unsafe`
      WITH capability AS (
        INSERT INTO capabilities (cap_id, cap_key)
        SELECT gen_random_uuid(), ${space} || n FROM generate_series(1, 1000) AS n RETURNING cap_id
      ), role AS (
        INSERT INTO roles (role_id, tenant_id, role_label)
        SELECT gen_random_uuid(), ${tenantId}::uuid, 'role ' || n FROM generate_series(1, 45) AS n RETURNING role_id
      )
      INSERT INTO role_capabilities (role_id, cap_id) SELECT role_id, cap_id FROM role, capability`);
  });
  for (const transport of transports) {
    const { org } = clientsOf(transport, server)(bearer(server.rootToken));
    const sizes: number[] = [];
    const seen = new Set<string>();
    let pageToken = "";
    do {
      const page = await org.listRoles({ tenantId, pageSize: 1_000, pageToken });
      for (const { roleId, capabilityKeys } of page.roles) {
        seen.add(roleId);
        expect(capabilityKeys).toHaveLength(1_000);
      }
      sizes.push(page.roles.length);
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect([transport, sizes]).toEqual([transport, [20, 20, 5]]);
    expect(seen.size).toBe(45);
  }
});

test("of 20 creates with one label at once exactly one wins, and of 20 renamings", async () => {
  const server = await startBoth();
  const tenantId = await server.addTenant();
  const label = uniqueLabel();
  const creates = Array.from({ length: 20 }, () => server.org.createRole({ tenantId, label }));
  expect(await outcomes(creates)).toEqual({ answered: 1, reasons: Array(19).fill("ROLE_LABEL_TAKEN") });
  const roles = await Promise.all(Array.from({ length: 20 }, () => addRole(server, { tenantId })));
  const renamings = roles.map(({ roleId }) => server.org.updateRole({ tenantId, roleId, label: `${label}!` }));
  expect(await outcomes(renamings)).toEqual({ answered: 1, reasons: Array(19).fill("ROLE_LABEL_TAKEN") });
  const { roles: listed } = await server.org.listRoles({ tenantId, pageSize: 1_000 });
  expect(listed.filter((role) => role.label.startsWith(label))).toHaveLength(2);
});

test("20 repeats of one create at once all answer one role, with one event", async () => {
  const server = await startBoth();
  const [edit] = await addCapabilities(server, "edit");
  const request = {
    tenantId: await server.addTenant(),
    roleId: randomUUID(),
    label: "Cook",
    capabilityKeys: [edit!],
  };
  const answers = await Promise.all(Array.from({ length: 20 }, () => server.org.createRole(request)));
  for (const answer of answers) expect(answer).toEqual(answers[0]);
  expect(await actionsOf(server, request.roleId)).toEqual(["org.role.create"]);
});
