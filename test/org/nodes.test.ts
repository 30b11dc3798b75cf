import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { heldUp } from "../support/held-up.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { plantRoles } from "../support/roles.ts";
import { type TestService, startService, transports } from "../support/service.ts";
import { plantUser } from "../support/sign-in.ts";
import { addChain, addNode, eventsOf, pathDifferences } from "../support/trees.ts";

const place = { nodeType: "place", label: "Place" };

const actionsOf = async (server: TestService, nodeId: string) =>
  (await eventsOf(server, nodeId)).map(({ action_key }) => action_key);

describe.each(transports)("%s", (transport) => {
  test("a created node is active, knows its parent and depth, and is found as it was answered", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const { node: root } = await server.org.createNode({ tenantId, nodeType: "company", label: "Ärzte & Söhne 😀" });
    expect(root).toMatchObject({ tenantId, nodeType: "company", label: "Ärzte & Söhne 😀", active: true, depth: 0 });
    expect(root?.parentNodeId).toBeUndefined();
    expect(root?.nodeId).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    const { node } = await server.org.createNode({ ...place, tenantId, parentNodeId: root!.nodeId.toUpperCase() });
    expect(node).toMatchObject({ parentNodeId: root?.nodeId, depth: 1 });
    expect((await server.org.getNode({ tenantId, nodeId: node!.nodeId })).node).toEqual(node);
    expect(await eventsOf(server, node!.nodeId)).toEqual([
      { action_key: "org.node.create", payload: { node_type: "place", parent_node_id: root?.nodeId } },
    ]);
    expect(await pathDifferences(server, tenantId)).toEqual([]);
  });

  test("a repeated create answers as the first did and writes nothing; another content is refused", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const parentNodeId = (await addNode(server, tenantId)).nodeId;
    const nodeId = randomUUID();
    const request = { ...place, tenantId, nodeId, parentNodeId };
    const { node } = await server.org.createNode(request);
    const upper = { ...request, nodeId: nodeId.toUpperCase(), tenantId: tenantId.toUpperCase() };
    expect((await server.org.createNode(upper)).node).toEqual(node);
    // What is not sent is not compared.
    expect((await server.org.createNode({ ...place, tenantId, nodeId })).node).toEqual(node);
    const changes = [
      { label: "Other" },
      { nodeType: "other" },
      { parentNodeId: randomUUID() },
      { parentNodeId: nodeId },
    ];
    for (const change of changes) {
      const { metadata } = await expectRefusal(server.org.createNode({ ...request, ...change }), "NODE_ID_TAKEN");
      expect(metadata).toMatchObject({ node_id: nodeId });
    }
    await expectRefusal(server.org.createNode({ ...place, tenantId: other, nodeId }), "NODE_ID_TAKEN");
    expect(await actionsOf(server, nodeId)).toEqual(["org.node.create"]);
  });

  test("of 20 creates with one id at once all answer one node; with 20 labels exactly one wins", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [same, differing] = [randomUUID(), randomUUID()];
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => server.org.createNode({ ...place, tenantId, nodeId: same })),
    );
    for (const { node } of answers) expect(node).toEqual(answers[0]!.node);
    const settled = await Promise.allSettled(
      Array.from({ length: 20 }, (_, n) =>
        server.org.createNode({ ...place, label: `${n}`, tenantId, nodeId: differing }),
      ),
    );
    expect(settled.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    expect([await actionsOf(server, same), await actionsOf(server, differing)]).toEqual([
      ["org.node.create"],
      ["org.node.create"],
    ]);
    expect(await pathDifferences(server, tenantId)).toEqual([]);
  });

  test("of 20 tenants that create one id at once exactly one gets it, and the others nothing", async () => {
    const server = await startService(transport);
    const tenants = await Promise.all(Array.from({ length: 20 }, () => server.addTenant()));
    const nodeId = randomUUID();
    const settled = await Promise.allSettled(
      tenants.map((tenantId) =>
        server.org.batchCreateNodes({
          tenantId,
          nodes: [
            { ...place, nodeId: randomUUID() },
            { ...place, nodeId },
          ],
        }),
      ),
    );
    expect(settled.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    for (const outcome of settled) {
      if (outcome.status === "rejected") {
        expect((await refused(Promise.reject(outcome.reason as Error))).reason).toBe("NODE_ID_TAKEN");
      }
    }
    const roots = await Promise.all(tenants.map((tenantId) => server.org.listChildren({ tenantId })));
    expect(roots.map(({ nodes }) => nodes.length).filter((length) => length > 0)).toEqual([2]);
    for (const tenantId of tenants) expect(await pathDifferences(server, tenantId)).toEqual([]);
  });

  test("a node's tenant and parent must exist, and be each other's", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const foreign = (await addNode(server, other)).nodeId;
    await expectRefusal(server.org.createNode({ ...place, tenantId: randomUUID() }), "TENANT_NOT_FOUND");
    for (const parentNodeId of [foreign, randomUUID()]) {
      const create = server.org.createNode({ ...place, tenantId, parentNodeId });
      expect((await expectRefusal(create, "NODE_NOT_FOUND")).metadata).toMatchObject({ node_id: parentNodeId });
    }
    const request = { tenantId, nodeId: foreign };
    await expectRefusal(server.org.getNode(request), "NODE_NOT_FOUND");
    await expectRefusal(server.org.updateNode({ ...request, label: "Mine" }), "NODE_NOT_FOUND");
    await expectRefusal(server.org.deactivateNode(request), "NODE_NOT_FOUND");
    await expectRefusal(server.org.activateNode(request), "NODE_NOT_FOUND");
    await expectRefusal(server.org.deleteNode(request), "NODE_NOT_FOUND");
    await expectRefusal(server.org.deleteNode({ ...request, tenantId: randomUUID() }), "NODE_NOT_FOUND");
    expect(await actionsOf(server, foreign)).toEqual(["org.node.create"]);
  });

  test("what a node may be called is bounded", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const wrong: [string, object][] = [
      ["label", { label: "" }],
      ["label", { label: "x".repeat(201) }],
      ["label", { label: "a\0b" }],
      ["node_type", { nodeType: "Shop" }],
      ["node_type", { nodeType: "x".repeat(64) }],
      ["node_id", { nodeId: "1" }],
      ["parent_node_id", { parentNodeId: "1" }],
    ];
    for (const [field, change] of wrong) {
      const create = server.org.createNode({ ...place, tenantId, ...change });
      expect(new Set((await expectRefusal(create, "INVALID_REQUEST")).fields)).toEqual(new Set([field]));
    }
    const most = { nodeType: `a${"z".repeat(62)}`, label: "😀".repeat(200) };
    expect((await server.org.createNode({ ...most, tenantId })).node).toMatchObject(most);
  });

  test("an update changes what its mask names, and writes nothing where nothing changes", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [, nodeId = ""] = await addChain(server, tenantId, 2);
    const update = (change: object, ...paths: string[]) =>
      server.org.updateNode({ tenantId, nodeId, ...change, ...(paths.length > 0 && { updateMask: { paths } }) });
    expect((await update({ label: "Shop", nodeType: "shop" }, "label")).node).toMatchObject({
      label: "Shop",
      nodeType: "place",
      depth: 1,
    });
    expect((await update({ nodeType: "shop" })).node).toMatchObject({ label: "Shop", nodeType: "shop" });
    expect((await update({ label: "Shop", nodeType: "shop" }, "*")).node).toMatchObject({ nodeType: "shop" });
    expect((await update({})).node?.label).toBe("Shop");
    expect((await expectRefusal(update({ label: "" }, "label"), "INVALID_REQUEST")).fields).toEqual(["label"]);
    expect((await expectRefusal(update({}, "parent_node_id"), "INVALID_REQUEST")).fields).toEqual(["update_mask"]);
    await expectRefusal(server.org.updateNode({ tenantId, nodeId: randomUUID(), label: "x" }), "NODE_NOT_FOUND");
    expect((await eventsOf(server, nodeId)).slice(1)).toEqual([
      { action_key: "org.node.update", payload: { fields: ["label"] } },
      { action_key: "org.node.update", payload: { fields: ["node_type"] } },
    ]);
  });

  test("a deactivated node says so, keeps its children as they are, and can be filled", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [nodeId = "", childId = ""] = await addChain(server, tenantId, 2);
    for (let repeat = 0; repeat < 2; repeat++) {
      expect((await server.org.deactivateNode({ tenantId, nodeId })).node).toMatchObject({ nodeId, active: false });
    }
    expect((await server.org.getNode({ tenantId, nodeId: childId })).node?.active).toBe(true);
    expect(await addNode(server, tenantId, nodeId)).toMatchObject({ active: true, depth: 1 });
    for (let repeat = 0; repeat < 2; repeat++) {
      expect((await server.org.activateNode({ tenantId, nodeId })).node).toMatchObject({ nodeId, active: true });
    }
    expect(await actionsOf(server, nodeId)).toEqual(["org.node.create", "org.node.deactivate", "org.node.activate"]);
  });

  test("a leaf that nothing named is deleted with its paths, and its id is free again", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [rootId = "", nodeId = ""] = await addChain(server, tenantId, 2);
    await expectRefusal(server.org.deleteNode({ tenantId, nodeId: rootId }), "NODE_IN_USE");
    await server.org.deleteNode({ tenantId, nodeId });
    await expectRefusal(server.org.getNode({ tenantId, nodeId }), "NODE_NOT_FOUND");
    await expectRefusal(server.org.deleteNode({ tenantId, nodeId }), "NODE_NOT_FOUND");
    await expectRefusal(server.org.createNode({ ...place, tenantId, parentNodeId: nodeId }), "NODE_NOT_FOUND");
    await server.org.createNode({ ...place, tenantId, nodeId });
    await server.org.deleteNode({ tenantId, nodeId: rootId });
    expect(await actionsOf(server, nodeId)).toEqual(["org.node.create", "org.node.delete", "org.node.create"]);
    expect(await pathDifferences(server, tenantId)).toEqual([]);
  });

  test("a node that an assignment, a grant or an invitation ever named is kept", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const userId = await plantUser(server, tenantId);
    const [roleId = ""] = await plantRoles(server, tenantId, 1);
    const [assigned, granted, invited] = await addChain(server, tenantId, 1).then(async ([root = ""]) =>
      Promise.all([1, 2, 3].map(async () => (await addNode(server, tenantId, root)).nodeId)),
    );
    await server.pool.query(sql.unsafe`
      INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc)
      VALUES (${randomUUID()}::uuid, ${tenantId}::uuid, ${userId}::uuid, ${assigned!}::uuid, ${roleId}::uuid,
        now() - interval '2 days', now() - interval '1 day')`);
    await server.pool.query(sql.unsafe`
      INSERT INTO visibility_grants (grant_id, tenant_id, user_id, org_node_id, access_scope_code, start_utc, cancelled_utc)
      VALUES (${randomUUID()}::uuid, ${tenantId}::uuid, ${userId}::uuid, ${granted!}::uuid, 'read',
        now() + interval '1 day', now())`);
    await server.pool.query(sql.unsafe`
      INSERT INTO invitations (invite_id, tenant_id, email_addr, target_role_id, target_org_node_id,
        invite_token_hash_text, expiry_utc, revoked_utc)
      VALUES (${randomUUID()}::uuid, ${tenantId}::uuid, 'a@example.com', ${roleId}::uuid, ${invited!}::uuid, 'x', now(),
        now())`);
    for (const nodeId of [assigned!, granted!, invited!]) {
      expect((await expectRefusal(server.org.deleteNode({ tenantId, nodeId }), "NODE_IN_USE")).metadata).toMatchObject({
        node_id: nodeId,
      });
    }
  });

  test("a delete waits for whoever is naming the node, and then keeps it", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [userId, { nodeId }] = [await plantUser(server, tenantId), await addNode(server, tenantId)];
    const naming = sql.unsafe`
      INSERT INTO visibility_grants (grant_id, tenant_id, user_id, org_node_id, access_scope_code, start_utc)
      VALUES (${randomUUID()}::uuid, ${tenantId}::uuid, ${userId}::uuid, ${nodeId}::uuid, 'read', now())`;
    const deletion = await heldUp(server, naming, () => refused(server.org.deleteNode({ tenantId, nodeId })));
    expect(deletion.reason).toBe("NODE_IN_USE");
    expect((await server.org.getNode({ tenantId, nodeId })).node?.nodeId).toBe(nodeId);
  });
});

test("a change of a node waits for another, and is none where that one did the same", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const { nodeId } = await addNode(server, tenantId);
  const calls = [
    async () => (await server.org.updateNode({ tenantId, nodeId, label: "Shop" })).node,
    async () => (await server.org.deactivateNode({ tenantId, nodeId })).node,
  ];
  const lock = sql.unsafe`SELECT FROM org_nodes WHERE org_node_id = ${nodeId}::uuid FOR NO KEY UPDATE`;
  const change = sql.unsafe`
    UPDATE org_nodes SET node_label = 'Shop', active_flag = false WHERE org_node_id = ${nodeId}::uuid`;
  for (const call of calls) {
    await server.pool.query(sql.unsafe`
      UPDATE org_nodes SET node_label = 'Place', active_flag = true WHERE org_node_id = ${nodeId}::uuid`);
    const node = await heldUp(server, lock, call, (tx) => tx.query(change));
    expect(node).toMatchObject({ label: "Shop", active: false });
  }
  expect(await actionsOf(server, nodeId)).toEqual(["org.node.create"]);
});
