import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { raceFor, startBoth } from "../support/both-transports.ts";
import { heldUp } from "../support/held-up.ts";
import { expectRefusal } from "../support/refusals.ts";
import {
  type Place,
  addCapabilities,
  addRole,
  plantAssignment,
  plantInvitation,
  plantPlace,
  plantRoles,
  storedRole,
} from "../support/roles.ts";
import { type TestService, startService, transports } from "../support/service.ts";
import { actionsOf, eventsOf, outcomes, uniqueEmail } from "../support/users.ts";

const idRow = z.object({ role_id: z.string() });

/** Assigns a role, or invites to it; answers whether the role was there. */
const nameRole = async (
  { org }: TestService,
  { tenantId, userId, nodeId }: Place,
  roleId: string,
  invites: boolean,
) => {
  const naming = invites
    ? org.createInvitation({ tenantId, email: uniqueEmail(), nodeId, roleId })
    : org.assignRole({ tenantId, userId, nodeId, roleId });
  const { answered, reasons } = await outcomes([naming]);
  expect(reasons).toEqual(answered ? [] : ["ROLE_NOT_FOUND"]);
  return answered === 1;
};

const namedRow = z.object({ role_id: z.string(), count: z.number() });

/** How many assignments and invitations name each of the roles. */
const named = async ({ pool }: TestService, roleIds: readonly string[]) => {
  const rows = await pool.any(sql.type(namedRow)`
    WITH names AS (
      SELECT role_id FROM org_assignments UNION ALL SELECT target_role_id FROM invitations
    )
    SELECT r.role_id, (SELECT count(*)::int FROM names n WHERE n.role_id = r.role_id) AS count
    FROM unnest(${sql.array(roleIds, "uuid")}) AS r (role_id)`);
  return new Map(rows.map(({ role_id, count }) => [role_id, count]));
};

describe.each(transports)("%s", (transport) => {
  test("a deleted role is found no more, and its label is free", async () => {
    const server = await startService(transport);
    const [edit] = await addCapabilities(server, "edit");
    const { tenantId, roleId } = await addRole(server, { label: "Cook", capabilityKeys: [edit!] });
    const role = { tenantId, roleId };
    await server.org.deleteRole({ tenantId: tenantId.toUpperCase(), roleId: roleId.toUpperCase() });
    const capabilityKeys = [edit!];
    for (const call of [
      () => server.org.getRole(role),
      () => server.org.updateRole({ ...role, label: "Chef" }),
      () => server.org.addRoleCapabilities({ ...role, capabilityKeys }),
      () => server.org.removeRoleCapabilities({ ...role, capabilityKeys }),
      () => server.org.deleteRole(role),
    ]) {
      expect((await expectRefusal(call(), "ROLE_NOT_FOUND")).metadata).toMatchObject({ role_id: roleId });
    }
    expect((await server.org.listRoles({ tenantId })).roles).toEqual([]);
    expect(await storedRole(server, roleId)).toEqual({ role_label: `Cook#${roleId}`, deleted: true });
    // The id stays the deleted role's, whatever the repeat says.
    await expectRefusal(server.org.createRole({ ...role, label: "Cook", capabilityKeys }), "ROLE_ID_TAKEN");
    expect((await addRole(server, { tenantId, label: "Cook" })).roleId).not.toBe(roleId);
    const [event] = await eventsOf(server, roleId);
    expect(event).toMatchObject({ action: "org.role.delete", tenantId, payload: { capability_keys: [edit] } });
    expect(await actionsOf(server, roleId)).toEqual(["org.role.delete", "org.role.create"]);
  });

  test.each([
    ["without end", { start: -60 }],
    ["that ends later", { start: -60, end: 60 }],
    ["that has not begun", { start: 60 }],
    ["that has not begun and will end", { start: 60, end: 120 }],
  ])("a role with an assignment %s is in use, until that has ended", async (_, window) => {
    const server = await startService(transport);
    const { tenantId, roleId } = await addRole(server);
    const place = await plantPlace(server, tenantId);
    const assignmentId = await plantAssignment(server.pool, place, roleId, window);
    const { metadata } = await expectRefusal(server.org.deleteRole({ tenantId, roleId }), "ROLE_IN_USE");
    expect(metadata).toMatchObject({ role_id: roleId });
    expect(await actionsOf(server, roleId)).toEqual(["org.role.create"]);
    await server.pool.query(sql.unsafe`
      UPDATE org_assignments SET start_utc = now() - interval '2 minutes', end_utc = now()
      WHERE assignment_id = ${assignmentId}::uuid`);
    await server.org.deleteRole({ tenantId, roleId });
  });

  test("what ended or was cancelled keeps no role, and keeps its history", async () => {
    const server = await startService(transport);
    const [edit] = await addCapabilities(server, "edit");
    const { tenantId, roleId } = await addRole(server, { capabilityKeys: [edit!] });
    const place = await plantPlace(server, tenantId);
    await plantAssignment(server.pool, place, roleId, { start: -60, end: -1 });
    await plantAssignment(server.pool, place, roleId, { start: 60, cancelled: true });
    for (const state of ["accepted", "revoked", "expired"] as const) {
      await plantInvitation(server.pool, place, roleId, state);
    }
    await server.org.deleteRole({ tenantId, roleId });
    expect(await named(server, [roleId])).toEqual(new Map([[roleId, 5]]));
    const kept = await server.pool.any(sql.type(idRow)`
      SELECT role_id FROM role_capabilities WHERE role_id = ${roleId}::uuid`);
    expect(kept).toHaveLength(1);
  });

  test("a role with a pending invitation is in use", async () => {
    const server = await startService(transport);
    const { tenantId, roleId } = await addRole(server);
    await plantInvitation(server.pool, await plantPlace(server, tenantId), roleId, "pending");
    await expectRefusal(server.org.deleteRole({ tenantId, roleId }), "ROLE_IN_USE");
    await server.pool.query(sql.unsafe`
      UPDATE invitations SET revoked_utc = now() WHERE target_role_id = ${roleId}::uuid`);
    await server.org.deleteRole({ tenantId, roleId });
  });

  test("what another role is used for keeps no role", async () => {
    const server = await startService(transport);
    const { tenantId, roleId } = await addRole(server);
    const used = await addRole(server, { tenantId });
    const place = await plantPlace(server, tenantId);
    await plantAssignment(server.pool, place, used.roleId);
    await plantInvitation(server.pool, place, used.roleId, "pending");
    await server.org.deleteRole({ tenantId, roleId });
    await expectRefusal(server.org.deleteRole({ tenantId, roleId: used.roleId }), "ROLE_IN_USE");
  });

  test("a label in the form of a deleted role's keeps no role from being deleted", async () => {
    const server = await startService(transport);
    const { tenantId, roleId } = await addRole(server, { label: "Cook" });
    const first = await addRole(server, { tenantId, label: `Cook#${roleId}` });
    const second = await addRole(server, { tenantId, label: `Cook#${roleId}#${roleId}` });
    await server.org.deleteRole({ tenantId, roleId });
    expect((await storedRole(server, roleId)).role_label).toMatch(new RegExp(`^Cook#${roleId}#[0-9a-f-]{36}$`));
    expect((await server.org.listRoles({ tenantId })).roles).toEqual([first, second]);
    await server.org.deleteRole({ tenantId, roleId: first.roleId });
    await server.org.deleteRole({ tenantId, roleId: second.roleId });
    expect((await storedRole(server, first.roleId)).role_label).toBe(`Cook#${roleId}#${first.roleId}`);
    expect((await addRole(server, { tenantId, label: "Cook" })).label).toBe("Cook");
  });
});

test("of 20 deletions of one role at once exactly one wins", async () => {
  const server = await startBoth();
  const { tenantId, roleId } = await addRole(server);
  const deletions = Array.from({ length: 20 }, () => server.org.deleteRole({ tenantId, roleId }));
  expect(await outcomes(deletions)).toEqual({ answered: 1, reasons: Array(19).fill("ROLE_NOT_FOUND") });
  expect(await actionsOf(server, roleId)).toEqual(["org.role.delete", "org.role.create"]);
});

test("while a role is assigned or offered it is deleted, or named, and never both", async () => {
  const server = await startBoth();
  const tenantId = await server.addTenant();
  const place = await plantPlace(server, tenantId);
  const roleIds = await plantRoles(server, tenantId, 200);
  const expected = new Map<string, number>();
  const race = async (roleId: string, round: number) => {
    const naming = nameRole(server, place, roleId, round % 2 === 0);
    const deletion = outcomes([server.org.deleteRole({ tenantId, roleId })]);
    const [wasThere, { answered, reasons }] = await Promise.all([naming, deletion]);
    expect({ answered, reasons }).toEqual(
      wasThere ? { answered: 0, reasons: ["ROLE_IN_USE"] } : { answered: 1, reasons: [] },
    );
    expected.set(roleId, wasThere ? 1 : 0);
  };
  await raceFor(roleIds, 20, race);
  expect(await named(server, roleIds)).toEqual(expected);
});

test("what ends or expires while a deletion waits for its role does not keep it", async () => {
  const server = await startService("grpc");
  const { tenantId, roleId } = await addRole(server);
  const place = await plantPlace(server, tenantId);
  await plantAssignment(server.pool, place, roleId);
  await plantInvitation(server.pool, place, roleId, "pending");
  await heldUp(
    server,
    sql.unsafe`SELECT FROM roles WHERE role_id = ${roleId}::uuid FOR KEY SHARE`,
    () => server.org.deleteRole({ tenantId, roleId }),
    async (tx) => {
      await tx.query(sql.unsafe`
        UPDATE org_assignments SET end_utc = clock_timestamp() WHERE role_id = ${roleId}::uuid`);
      await tx.query(sql.unsafe`
        UPDATE invitations SET expiry_utc = clock_timestamp() WHERE target_role_id = ${roleId}::uuid`);
    },
  );
  expect(await storedRole(server, roleId)).toMatchObject({ deleted: true });
});

test("a role whose label another one takes in the same moment is deleted all the same", async () => {
  const server = await startBoth();
  const tenantId = await server.addTenant();
  for (let round = 0; round < 10; round++) {
    const { roleId } = await addRole(server, { tenantId, label: "Cook" });
    const rename = await addRole(server, { tenantId, label: randomUUID() });
    const label = `Cook#${roleId}`;
    const calls = [
      server.org.deleteRole({ tenantId, roleId }),
      server.org.updateRole({ tenantId, roleId: rename.roleId, label }),
      server.org.createRole({ tenantId, label }),
    ];
    const [deletion] = await Promise.allSettled(calls);
    expect(deletion?.status).toBe("fulfilled");
    const { reasons } = await outcomes(calls);
    expect(reasons.every((reason) => reason === "ROLE_LABEL_TAKEN")).toBe(true);
    expect((await storedRole(server, roleId)).deleted).toBe(true);
  }
});
