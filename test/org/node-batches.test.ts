import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test, vi } from "vitest";
import { z } from "zod";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, launchService, startService, transports } from "../support/service.ts";
import { statementSchemas } from "../support/statement-schemas.ts";
import { addChain, addNode, eventsOf, pathDifferences } from "../support/trees.ts";

const place = { nodeType: "place", label: "Place" };
const node = (parentNodeId?: string) => ({ ...place, nodeId: randomUUID(), ...(parentNodeId && { parentNodeId }) });

/** A tree of so many nodes, three below each, parents first. */
const treeOf = (count: number, under?: string) => {
  const nodes = Array.from({ length: count }, () => node());
  return nodes.map((each, index) => {
    const parentNodeId = index === 0 ? under : nodes[Math.floor((index - 1) / 3)]!.nodeId;
    return { ...each, ...(parentNodeId && { parentNodeId }) };
  });
};

const nodeCount = ({ pool }: TestService, tenantId: string) =>
  pool.oneFirst(sql.type(z.object({ count: z.bigint() }))`
    SELECT count(*) FROM org_nodes WHERE tenant_id = ${tenantId}::uuid`);

test("a deep batch has the time of a move, and paths from all that was there to its last leaf", async () => {
  const env = { DATABASE_STATEMENT_TIMEOUT: "300ms", TREE_DEPTH_MAX: "110" };
  const server = await launchService("grpc", { env });
  const tenantId = await server.addTenant();
  const [, under = ""] = await addChain(server, tenantId, 2);
  const chain = Array.from({ length: 100 }, () => node());
  const deep = chain.map((each, index) => ({ ...each, parentNodeId: chain[index - 1]?.nodeId ?? under }));
  const leaves = Array.from({ length: 200 }, () => node(chain.at(-1)!.nodeId));
  const { nodes } = await server.org.batchCreateNodes({ tenantId, nodes: [...deep, ...leaves] });
  expect(nodes.at(-1)?.depth).toBe(102);
  expect(await pathDifferences(server, tenantId)).toEqual([]);
  await server.stop();
});

describe.each(transports)("%s", (transport) => {
  test("a batch of a thousand is answered in its order, with depths, an event each, and exact paths", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [, under = ""] = await addChain(server, tenantId, 2);
    const nodes = treeOf(1_000, under.toUpperCase());
    const { nodes: created } = await server.org.batchCreateNodes({ tenantId, nodes });
    expect(created.map(({ nodeId }) => nodeId)).toEqual(nodes.map(({ nodeId }) => nodeId));
    expect(created[0]).toMatchObject({ ...place, tenantId, parentNodeId: under, active: true, depth: 2 });
    expect(created[1]).toMatchObject({ parentNodeId: nodes[0]!.nodeId, depth: 3 });
    expect(created.at(-1)?.depth).toBe(8);
    for (const { nodeId } of [created[0]!, created.at(-1)!]) {
      expect((await eventsOf(server, nodeId)).map(({ action_key }) => action_key)).toEqual(["org.node.create"]);
    }
    expect(await pathDifferences(server, tenantId)).toEqual([]);

    // The same again, in part or with others: what is there stays as it is.
    expect((await server.org.batchCreateNodes({ tenantId, nodes })).nodes).toEqual(created);
    const more = [...nodes.slice(0, 5), node(nodes[2]!.nodeId)];
    const { nodes: both } = await server.org.batchCreateNodes({ tenantId, nodes: more });
    expect(both).toEqual([...created.slice(0, 5), expect.objectContaining({ nodeId: more[5]!.nodeId, depth: 4 })]);
    expect(await eventsOf(server, nodes[0]!.nodeId)).toHaveLength(1);
    expect(await pathDifferences(server, tenantId)).toEqual([]);
  });

  test("all of a batch are created or none", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const [root, foreign] = [await addNode(server, tenantId), await addNode(server, other)];
    const create = (nodes: object[], tenant = tenantId) => server.org.batchCreateNodes({ tenantId: tenant, nodes });
    const unknown = randomUUID();
    await expectRefusal(create([node(), node(unknown)]), "NODE_NOT_FOUND");
    await expectRefusal(create([node(), node(foreign.nodeId)]), "NODE_NOT_FOUND");
    for (const { nodeId } of [root, foreign]) {
      const taken = create([node(), { ...place, label: "Other", nodeId }]);
      expect((await expectRefusal(taken, "NODE_ID_TAKEN")).metadata).toMatchObject({ node_id: nodeId });
    }
    await expectRefusal(create([node()], randomUUID()), "TENANT_NOT_FOUND");
    expect(await nodeCount(server, tenantId)).toBe(1n);
    expect(await pathDifferences(server, tenantId)).toEqual([]);
  });

  test("an id that stands twice, and a parent that stands later, are named by their fields", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [first, second] = [node(), node()];
    const fieldsOf = async (nodes: object[]) => {
      const create = server.org.batchCreateNodes({ tenantId, nodes });
      return (await expectRefusal(create, "INVALID_REQUEST")).fields;
    };
    expect(await fieldsOf([first, second, { ...first, nodeId: first.nodeId.toUpperCase() }])).toEqual([
      "nodes[2].node_id",
    ]);
    const early = { ...first, parentNodeId: second.nodeId.toUpperCase() };
    expect(await fieldsOf([early, second])).toEqual(["nodes[0].parent_node_id"]);
    expect(await fieldsOf([first, { ...second, parentNodeId: second.nodeId }])).toEqual(["nodes[1].parent_node_id"]);
    expect(await fieldsOf([])).toEqual(["nodes"]);
    expect(await fieldsOf(Array.from({ length: 1_001 }, () => node()))).toEqual(["nodes"]);
    expect(await fieldsOf([{ ...first, label: "" }])).toEqual(["nodes[0].label"]);
    expect(await nodeCount(server, tenantId)).toBe(0n);
  });

  test("of 20 equal batches at once each answers the same nodes, which are created once", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const nodes = treeOf(30);
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => server.org.batchCreateNodes({ tenantId, nodes })),
    );
    for (const answer of answers) expect(answer.nodes).toEqual(answers[0]!.nodes);
    for (const { nodeId } of nodes) expect(await eventsOf(server, nodeId)).toHaveLength(1);
    expect(await pathDifferences(server, tenantId)).toEqual([]);
  });
});

test("a batch of a thousand takes as many statements as one of a single node", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  await addNode(server, tenantId);
  const watch = vi.spyOn(statementSchemas, "afterQueryExecution");
  const statementsOf = async (nodes: ReturnType<typeof treeOf>) => {
    watch.mockClear();
    await server.org.batchCreateNodes({ tenantId, nodes });
    const sent = watch.mock.calls.map(([, query]) => query.sql);
    return sent.filter((text) => /org_node|tenant_tree_locks|INSERT INTO audit_events/.test(text)).length;
  };
  try {
    expect(await statementsOf(treeOf(1))).toBe(4);
    const nodes = treeOf(1_000);
    expect(await statementsOf(nodes)).toBe(4);
    expect(await statementsOf(nodes)).toBe(2);
  } finally {
    watch.mockRestore();
  }
});

test("the deepest nodes are at TREE_DEPTH_MAX", async () => {
  const server = await launchService("grpc", { env: { TREE_DEPTH_MAX: "4" } });
  try {
    const tenantId = await server.addTenant();
    const chain = await addChain(server, tenantId, 5);
    expect((await server.org.getNode({ tenantId, nodeId: chain[4]! })).node?.depth).toBe(4);
    await expectRefusal(addNode(server, tenantId, chain[4]), "NODE_TOO_DEEP");
    await expectRefusal(addChain(server, tenantId, 2, chain[3]), "NODE_TOO_DEEP");
    await expectRefusal(addChain(server, tenantId, 6), "NODE_TOO_DEEP");
    await addChain(server, tenantId, 1, chain[3]);
    expect(await nodeCount(server, tenantId)).toBe(6n);
    const [top = ""] = await addChain(server, tenantId, 2);
    const move = (newParentNodeId?: string) =>
      server.org.moveNode({ tenantId, nodeId: top, ...(newParentNodeId && { newParentNodeId }) });
    await expectRefusal(move(chain[3]), "NODE_TOO_DEEP");
    expect((await move(chain[2])).node?.depth).toBe(3);
    expect(await pathDifferences(server, tenantId)).toEqual([]);
  } finally {
    await server.stop();
  }
});
