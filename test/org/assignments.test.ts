import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { expectRefusal } from "../support/refusals.ts";
import { addRole } from "../support/roles.ts";
import { startService, transports } from "../support/service.ts";
import { assignments, plantPost } from "../support/windows.ts";

describe.each(transports)("%s", (transport) => {
  const plant = async () => {
    const server = await startService(transport);
    return { server, post: await plantPost(server) };
  };

  test("an unknown role, a deleted one and another tenant's is refused, and nothing is written", async () => {
    const { server, post } = await plant();
    const { tenantId } = post;
    const deleted = await addRole(server, { tenantId });
    await server.org.deleteRole({ tenantId, roleId: deleted.roleId });
    for (const roleId of [randomUUID(), deleted.roleId, (await addRole(server)).roleId]) {
      const { metadata } = await expectRefusal(server.org.assignRole({ ...post, roleId }), "ROLE_NOT_FOUND");
      expect(metadata).toMatchObject({ role_id: roleId });
    }
    expect((await server.org.listAssignments({ tenantId })).assignments).toEqual([]);
  });

  test("a repeat is answered also once the role is deleted", async () => {
    const { server, post } = await plant();
    const id = randomUUID();
    await assignments.create(server, { ...post, id });
    const { tenantId, roleId } = post;
    const ended = await assignments.end(server, { tenantId, id });
    await server.org.deleteRole({ tenantId, roleId });
    expect(await assignments.create(server, { ...post, id })).toEqual(ended);
    await expectRefusal(assignments.create(server, post), "ROLE_NOT_FOUND");
  });
});
