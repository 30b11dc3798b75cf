import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { AccessScope, DecisionReason } from "../../src/gen/org/v1/org_pb.ts";
import { leastAfter } from "../../src/org/access-pages.ts";
import { expectRefusal } from "../support/refusals.ts";
import { addCapabilities, addRole } from "../support/roles.ts";
import { startService, transports } from "../support/service.ts";
import { addNode } from "../support/trees.ts";
import { addUser } from "../support/users.ts";

const { READ, ANALYZE } = AccessScope;

describe.each(transports)("%s", (transport) => {
  /** A user who has one capability, and sees what is there, at a root with a node below it. */
  const plant = async () => {
    const server = await startService(transport);
    const { org } = server;
    const { tenantId, userId } = await addUser(server);
    const keys = await addCapabilities(server, "a", "_", "b");
    const [capability] = keys;
    const { roleId } = await addRole(server, { tenantId, capabilityKeys: keys });
    const root = await addNode(server, tenantId);
    const node = await addNode(server, tenantId, root.nodeId);
    const at = { tenantId, userId, nodeId: root.nodeId };
    const { assignment } = await org.assignRole({ ...at, roleId });
    const { grant } = await org.grantVisibility({ ...at, scope: ANALYZE });
    const byCapability = { case: "capability" as const, value: capability! };
    return { server, tenantId, userId, root, node, keys, byCapability, assignment: assignment!, grant: grant! };
  };

  test("a user has the capabilities of its roles, in the order of their bytes, and no one twice", async () => {
    const { server, tenantId, userId, node, keys } = await plant();
    const { roleId } = await addRole(server, { tenantId, capabilityKeys: keys.slice(1) });
    await server.org.assignRole({ tenantId, userId, nodeId: node.nodeId, roleId });
    const { capabilityKeys } = await server.org.listEffectiveCapabilities({ tenantId, userId, nodeId: node.nodeId });
    expect(capabilityKeys).toEqual([...keys].sort());
  });

  test("who may analyze may read, and is listed once, by one of what counts", async () => {
    const { server, tenantId, userId, root, node, grant } = await plant();
    const { nodeId } = node;
    const { grant: second } = await server.org.grantVisibility({ tenantId, userId, nodeId, scope: READ });
    const reader = await addUser(server, { tenantId });
    await server.org.grantVisibility({ tenantId, userId: reader.userId, nodeId, scope: READ });
    const users = async (scope: AccessScope) =>
      (await server.org.listUsersWithAccess({ tenantId, nodeId, access: { case: "scope", value: scope } })).users;
    const ids = [grant.grantId, second!.grantId];
    const read = await users(READ);
    expect(read.map((user) => user.userId)).toEqual([userId, reader.userId].sort());
    expect(ids).toContain(read.find((user) => user.userId === userId)?.via.value);
    expect(await users(ANALYZE)).toMatchObject([{ userId, via: { case: "grantId", value: grant.grantId } }]);
    const nodes = async (who: string, scope: AccessScope) => {
      const access = { case: "scope" as const, value: scope };
      return (await server.org.listAccessibleNodes({ tenantId, userId: who, access })).nodes;
    };
    const byId = [root, node].sort((a, b) => (a.nodeId < b.nodeId ? -1 : 1));
    for (const scope of [READ, ANALYZE]) expect(await nodes(userId, scope)).toEqual(byId);
    expect(await nodes(reader.userId, READ)).toEqual([node]);
    expect(await nodes(reader.userId, ANALYZE)).toEqual([]);
    const check = { tenantId, userId: reader.userId, nodeId, scope: ANALYZE };
    expect(await server.org.checkVisibility(check)).toMatchObject({ allowed: false, reason: DecisionReason.NO_GRANT });
    expect(await server.org.checkVisibility({ ...check, scope: READ })).toMatchObject({ allowed: true });
  });

  test("of what is unknown, inactive, erased, suspended or another tenant's all lists are empty", async () => {
    const { server, tenantId, userId, node, byCapability } = await plant();
    const { org, auth } = server;
    const other = await plant();
    const lists = async (changed: object) => {
      const asked = { tenantId, userId, nodeId: node.nodeId, ...changed };
      const listed = [byCapability, { case: "scope" as const, value: READ }].map(async (access) => [
        await org.listAccessibleNodes({ access, ...asked }),
        await org.listUsersWithAccess({ access, ...asked }),
      ]);
      const { capabilityKeys } = await org.listEffectiveCapabilities(asked);
      const [byKey, byScope] = await Promise.all(listed);
      return { capabilityKeys, byKey, byScope };
    };
    const nothing = { nodes: [], nextPageToken: "" };
    const nobody = { users: [], nextPageToken: "" };
    const empty = { capabilityKeys: [], byKey: [nothing, nobody], byScope: [nothing, nobody] };
    expect((await lists({})).capabilityKeys).toHaveLength(3);
    for (const lost of [
      { tenantId: randomUUID() },
      { tenantId: other.tenantId },
      { userId: randomUUID(), nodeId: randomUUID() },
      { userId: other.userId, nodeId: other.node.nodeId },
    ]) {
      expect(await lists(lost)).toMatchObject(empty);
    }
    const unknown = { access: { case: "capability" as const, value: "never.made" } };
    expect(await org.listAccessibleNodes({ tenantId, userId, ...unknown })).toMatchObject(nothing);
    expect(await org.listUsersWithAccess({ tenantId, nodeId: node.nodeId, ...unknown })).toMatchObject(nobody);
    await org.suspendTenant({ tenantId });
    expect(await lists({})).toMatchObject(empty);
    await org.activateTenant({ tenantId });
    await auth.deactivateUser({ tenantId, userId });
    expect(await lists({})).toMatchObject(empty);
    await auth.activateUser({ tenantId, userId });
    expect((await lists({})).capabilityKeys).toHaveLength(3);
    await auth.eraseUser({ tenantId, userId });
    expect(await lists({})).toMatchObject(empty);
  });

  test("a closed node, and what is below it, is in no list", async () => {
    const { server, tenantId, userId, root, node, byCapability } = await plant();
    const below = await addNode(server, tenantId, node.nodeId);
    await server.org.deactivateNode({ tenantId, nodeId: node.nodeId });
    for (const access of [byCapability, { case: "scope" as const, value: ANALYZE }]) {
      const { nodes } = await server.org.listAccessibleNodes({ tenantId, userId, access });
      expect(nodes).toEqual([root]);
      const seers = [root, node, below].map(async ({ nodeId }) => {
        const { users } = await server.org.listUsersWithAccess({ tenantId, nodeId, access });
        return users.length;
      });
      expect(await Promise.all(seers)).toEqual([1, 0, 0]);
    }
  });

  test("while a node is closed and moved away, every list has it as it is accessible, or has it not", async () => {
    const { server, tenantId, userId, root, node, byCapability } = await plant();
    const { org } = server;
    const { nodeId } = node;
    const written = new AbortController();
    const write = async () => {
      for (let round = 0; round < 10; round++) {
        await org.deactivateNode({ tenantId, nodeId });
        await org.activateNode({ tenantId, nodeId });
        await org.moveNode({ tenantId, nodeId });
        await org.moveNode({ tenantId, nodeId, newParentNodeId: root.nodeId });
      }
    };
    const listed = new Set<string>();
    const list = async (access: typeof byCapability | { case: "scope"; value: AccessScope }) => {
      while (!written.signal.aborted) {
        const { nodes } = await org.listAccessibleNodes({ tenantId, userId, access });
        for (const { active, depth } of nodes.filter((one) => one.nodeId === nodeId)) listed.add(`${active} ${depth}`);
      }
    };
    const accesses = [byCapability, { case: "scope" as const, value: READ }].flatMap((access) => [access, access]);
    await Promise.all([write().finally(() => written.abort()), ...accesses.map(list)]);
    expect([...listed]).toEqual(["true 1"]);
  });

  test("a page's token belongs to what it was asked about", async () => {
    const { server, tenantId, userId, node, keys, byCapability } = await plant();
    const { org } = server;
    const asked = { tenantId, userId, access: byCapability, pageSize: 1 };
    const { nextPageToken: pageToken } = await org.listAccessibleNodes(asked);
    expect((await org.listAccessibleNodes({ ...asked, pageSize: 5, pageToken })).nodes).toHaveLength(1);
    const foreign = [
      { ...asked, access: { case: "capability" as const, value: keys[1]! } },
      { ...asked, access: { case: "scope" as const, value: READ } },
      { ...asked, userId: randomUUID() },
      { ...asked, tenantId: randomUUID() },
    ];
    for (const request of foreign) {
      const { fields } = await expectRefusal(org.listAccessibleNodes({ ...request, pageToken }), "INVALID_REQUEST");
      expect(fields).toEqual(["page_token"]);
    }
    const users = { tenantId, nodeId: node.nodeId, access: byCapability, pageToken };
    expect((await expectRefusal(org.listUsersWithAccess(users), "INVALID_REQUEST")).fields).toEqual(["page_token"]);
  });
});

test("the least and the greatest id that there can be are listed as every other, on pages of one", async () => {
  const server = await startService("grpc");
  const { org, auth } = server;
  const tenantId = await server.addTenant();
  const ids = ["0", "f"].map((digit) => "00000000-0000-0000-0000-000000000000".replaceAll("0", digit));
  expect(ids.map(leastAfter)).toEqual([`${"0".repeat(31)}1`, null]);
  const [capability = ""] = await addCapabilities(server, "a");
  const { roleId } = await addRole(server, { tenantId, capabilityKeys: [capability] });
  for (const id of ids) {
    await org.createNode({ tenantId, nodeId: id, nodeType: "shop", label: "Shop" });
    await auth.createUser({ tenantId, userId: id, email: `${randomUUID()}@example.com` });
  }
  for (const userId of ids) {
    for (const nodeId of ids) {
      await org.assignRole({ tenantId, userId, nodeId, roleId });
      await org.grantVisibility({ tenantId, userId, nodeId, scope: READ });
    }
  }
  const walk = async (page: (pageToken: string) => Promise<{ found: string[]; nextPageToken: string }>) => {
    const all: string[] = [];
    for (let pageToken = "", pages = 0; pages === 0 || pageToken !== ""; pages++) {
      const { found, nextPageToken } = await page(pageToken);
      all.push(...found);
      pageToken = nextPageToken;
    }
    return all;
  };
  for (const access of [
    { case: "capability" as const, value: capability },
    { case: "scope" as const, value: READ },
  ]) {
    const nodes = await walk(async (pageToken) => {
      const list = await org.listAccessibleNodes({ tenantId, userId: ids[0]!, access, pageSize: 1, pageToken });
      return { found: list.nodes.map(({ nodeId }) => nodeId), nextPageToken: list.nextPageToken };
    });
    const users = await walk(async (pageToken) => {
      const list = await org.listUsersWithAccess({ tenantId, nodeId: ids[0]!, access, pageSize: 1, pageToken });
      return { found: list.users.map(({ userId }) => userId), nextPageToken: list.nextPageToken };
    });
    expect([nodes, users]).toEqual([ids, ids]);
  }
});
