import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { DecisionReason, NearMissReason } from "../../src/gen/org/v1/org_pb.ts";
import { addCapabilities, addRole } from "../support/roles.ts";
import { startService, transports } from "../support/service.ts";
import { addNode } from "../support/trees.ts";
import { addUser } from "../support/users.ts";
import { at, databaseNow } from "../support/windows.ts";

const HOUR = 3_600_000_000n;

describe.each(transports)("%s", (transport) => {
  /** A user with all kinds of assignments on a root, a city below it and a shop below that. */
  const plant = async () => {
    const server = await startService(transport);
    const { org } = server;
    const { tenantId, userId } = await addUser(server);
    const [capability, other] = await addCapabilities(server, "edit", "see");
    const editor = await addRole(server, { tenantId, capabilityKeys: [capability!, other!] });
    const guest = await addRole(server, { tenantId, capabilityKeys: [other!] });
    const root = await addNode(server, tenantId);
    const city = await addNode(server, tenantId, root.nodeId);
    const shop = await addNode(server, tenantId, city.nodeId);
    const assign = async (nodeId: string, { roleId } = editor, window = {}) => {
      const { assignment } = await org.assignRole({ tenantId, userId, nodeId, roleId, ...window });
      return assignment!;
    };
    const now = await databaseNow(server);
    const cancelled = await assign(city.nodeId, editor, { startTime: at(now + HOUR) });
    const held = {
      atRoot: await assign(root.nodeId),
      atShop: await assign(shop.nodeId),
      guest: await assign(shop.nodeId, guest),
      ended: await assign(city.nodeId, editor, { startTime: at(now - 2n * HOUR), endTime: at(now - HOUR) }),
      cancelled: (await org.endAssignment({ tenantId, assignmentId: cancelled.assignmentId })).assignment!,
      later: await assign(root.nodeId, editor, { startTime: at(now + HOUR) }),
    };
    await assign((await addNode(server, tenantId, city.nodeId)).nodeId);
    return {
      server,
      root,
      city,
      shop,
      held,
      editor,
      guest,
      check: { tenantId, userId, nodeId: shop.nodeId, capability: capability! },
    };
  };

  test("nodes that were loaded with times that no Timestamp holds are told as GetNode tells them", async () => {
    const { server, root, city, shop, check } = await plant();
    const nodes = [root, city, shop];
    for (const [index, time] of ["-infinity", "infinity", "0044-03-15 00:00:00+00 BC"].entries()) {
      await server.pool.query(sql.unsafe`
        UPDATE org_nodes SET created_utc = ${time}::timestamptz WHERE org_node_id = ${nodes[index]!.nodeId}::uuid`);
    }
    const { tenantId } = check;
    const told = await Promise.all(
      nodes.map(async ({ nodeId }) => (await server.org.getNode({ tenantId, nodeId })).node),
    );
    const { grants } = await server.org.explainAccess(check);
    expect(grants.map(({ path }) => path)).toEqual([[told[2]], told]);
  });

  test("each grant is named with the nodes by which it reaches, and each near miss with why, the nearest first", async () => {
    const { server, root, city, shop, held, editor, guest, check } = await plant();
    const { grants, nearMisses, ...decision } = await server.org.explainAccess(check);
    expect(decision).toMatchObject({ allowed: true, reason: DecisionReason.GRANTED });
    const roleLabel = editor.label;
    expect(grants).toMatchObject([
      { assignment: held.atShop, roleLabel, path: [shop] },
      { assignment: held.atRoot, roleLabel, path: [root, city, shop] },
    ]);
    const { NOT_YET, ENDED, CANCELLED, CAPABILITY_MISSING } = NearMissReason;
    expect(nearMisses).toMatchObject([
      { assignment: held.guest, roleLabel: guest.label, why: CAPABILITY_MISSING },
      { assignment: held.cancelled, roleLabel, why: CANCELLED },
      { assignment: held.ended, roleLabel, why: ENDED },
      { assignment: held.later, roleLabel, why: NOT_YET },
    ]);
  });

  test("a role that was deleted since is named as it was", async () => {
    const { server, shop, held, guest, check } = await plant();
    const { tenantId, userId, capability } = check;
    const label = "A role # of its own";
    const { roleId } = await addRole(server, { tenantId, label });
    const { assignment } = await server.org.assignRole({ tenantId, userId, nodeId: shop.nodeId, roleId });
    await server.org.endAssignment({ tenantId, assignmentId: assignment!.assignmentId });
    await server.org.deleteRole({ tenantId, roleId });
    const { nearMisses } = await server.org.explainAccess({ tenantId, userId, nodeId: shop.nodeId, capability });
    const labels = new Map(nearMisses.map((miss) => [miss.assignment?.assignmentId, miss.roleLabel]));
    expect(labels.get(assignment!.assignmentId)).toBe(label);
    expect(labels.get(held.guest.assignmentId)).toBe(guest.label);
  });

  test("what would grant but for a closed node, wherever it is on the way up, is a near miss", async () => {
    const { server, root, city, shop, held, check } = await plant();
    for (const { tenantId, nodeId } of [shop, city, root]) {
      await server.org.deactivateNode({ tenantId, nodeId });
      const { grants, nearMisses, ...decision } = await server.org.explainAccess(check);
      expect(decision).toMatchObject({ allowed: false, reason: DecisionReason.NODE_INACTIVE });
      expect(grants).toEqual([]);
      const closed = nearMisses.filter(({ why }) => why === NearMissReason.NODE_INACTIVE);
      expect(closed.map(({ assignment }) => assignment)).toEqual([held.atShop, held.atRoot]);
      expect(nearMisses).toHaveLength(6);
      await server.org.activateNode({ tenantId, nodeId });
    }
  });
});
