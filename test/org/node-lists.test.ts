import { randomUUID } from "node:crypto";
import { type QuerySqlToken, sql } from "slonik";
import { describe, expect, test } from "vitest";
import type { Node } from "../../src/gen/org/v1/org_pb.ts";
import { selectAncestors, selectChildren, selectDescendants, selectRoots } from "../../src/org/node-lists.ts";
import { indexesOf, planOf, scannedOf, sortsOf } from "../support/plans.ts";
import { expectRefusal } from "../support/refusals.ts";
import { startService, transports } from "../support/service.ts";
import { addChain, addNode, plantSubtree } from "../support/trees.ts";

interface Page {
  readonly nodes: readonly Node[];
  readonly nextPageToken: string;
}

/** All pages one after the other. */
const all = async (page: (pageToken: string) => Promise<Page>): Promise<readonly Node[]> => {
  const nodes: Node[] = [];
  let pageToken = "";
  do {
    const answer = await page(pageToken);
    nodes.push(...answer.nodes);
    pageToken = answer.nextPageToken;
  } while (pageToken !== "");
  return nodes;
};

const idsOf = (nodes: readonly Node[]) => nodes.map(({ nodeId }) => nodeId);

describe.each(transports)("%s", (transport) => {
  test("roots and children are listed by id, page by page, and nobody else's", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const add = (parent?: string) =>
      Promise.all(Array.from({ length: 7 }, () => addNode(server, tenantId, parent))).then(idsOf);
    const roots = (await add()).sort();
    const children = (await add(roots[3])).sort();
    await add(children[0]);
    await addNode(server, other);
    const list = (parentNodeId?: string) =>
      all((pageToken) =>
        server.org.listChildren({ tenantId, pageToken, pageSize: 3, ...(parentNodeId && { parentNodeId }) }),
      );
    expect(idsOf(await list())).toEqual(roots);
    expect((await list()).map(({ depth }) => depth)).toEqual(roots.map(() => 0));
    expect(idsOf(await list(roots[3]!.toUpperCase()))).toEqual(children);
    expect((await list(roots[3])).map(({ depth }) => depth)).toEqual(children.map(() => 1));
    expect(await list(randomUUID())).toEqual([]);
    const foreign = await server.org.listChildren({ tenantId: other, parentNodeId: roots[3]! });
    expect(foreign).toMatchObject({ nodes: [], nextPageToken: "" });
    expect((await server.org.listChildren({ tenantId: randomUUID() })).nodes).toEqual([]);
    const { nextPageToken: pageToken } = await server.org.listChildren({ tenantId, pageSize: 1 });
    const others = server.org.listChildren({ tenantId, parentNodeId: roots[3]!, pageToken });
    expect((await expectRefusal(others, "INVALID_REQUEST")).fields).toEqual(["page_token"]);
    const negative = server.org.listChildren({ tenantId, pageSize: -1 });
    expect((await expectRefusal(negative, "INVALID_REQUEST")).fields).toEqual(["page_size"]);
  });

  test("ancestors are listed root first, without the node itself", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const chain = await addChain(server, tenantId, 5);
    const { nodes } = await server.org.listAncestors({ tenantId, nodeId: chain[4]! });
    expect(idsOf(nodes)).toEqual(chain.slice(0, 4));
    expect(nodes.map(({ depth }) => depth)).toEqual([0, 1, 2, 3]);
    expect((await server.org.listAncestors({ tenantId, nodeId: chain[0]! })).nodes).toEqual([]);
    await expectRefusal(server.org.listAncestors({ tenantId, nodeId: randomUUID() }), "NODE_NOT_FOUND");
    await expectRefusal(server.org.listAncestors({ tenantId: other, nodeId: chain[4]! }), "NODE_NOT_FOUND");
  });

  test("descendants are listed by depth, then id, down to a depth, each on one page", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const [top = "", nodeId = ""] = await addChain(server, tenantId, 2);
    const children = idsOf(await Promise.all([1, 2, 3, 4].map(() => addNode(server, tenantId, nodeId)))).sort();
    const below = idsOf(await Promise.all(children.map((child) => addNode(server, tenantId, child)))).sort();
    const list = (more: object = {}) =>
      all((pageToken) => server.org.listDescendants({ tenantId, nodeId, pageToken, pageSize: 3, ...more }));
    const listed = await list();
    expect(idsOf(listed)).toEqual([...children, ...below]);
    expect(listed.map(({ depth }) => depth)).toEqual([1, 1, 1, 1, 2, 2, 2, 2]);
    expect(idsOf(await list({ nodeId: nodeId.toUpperCase(), maxDepth: 1 }))).toEqual(children);
    expect(idsOf(await list({ nodeId: top, maxDepth: 2 }))).toEqual([nodeId, ...children]);
    expect(await list({ nodeId: below[0] })).toEqual([]);
    expect(await list({ nodeId: randomUUID() })).toEqual([]);
    expect(await list({ tenantId: other })).toEqual([]);
    expect((await expectRefusal(list({ maxDepth: 0 }), "INVALID_REQUEST")).fields).toEqual(["max_depth"]);
    const { nextPageToken: pageToken } = await server.org.listDescendants({ tenantId, nodeId, pageSize: 1 });
    const others = server.org.listDescendants({ tenantId, nodeId, maxDepth: 1, pageToken });
    expect((await expectRefusal(others, "INVALID_REQUEST")).fields).toEqual(["page_token"]);
  });
});

test("among thousands of nodes each list reads its index in order, and sorts no more than a chain", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  const { nodeId } = await addNode(server, tenantId);
  await plantSubtree(server, tenantId, nodeId, 5_000);
  const place = { nodeType: "place", label: "Place" };
  for (const parent of [{}, { parentNodeId: nodeId }]) {
    const nodes = Array.from({ length: 1_000 }, () => ({ ...place, nodeId: randomUUID(), ...parent }));
    await server.org.batchCreateNodes({ tenantId, nodes });
  }
  await server.pool.query(sql.unsafe`VACUUM (ANALYZE) org_nodes, org_node_paths`);
  const after = "00000000-0000-4000-8000-000000000000";
  const below = { tenantId, nodeId, maxDepth: 2 ** 31 - 1 };
  const statements: [string, boolean, QuerySqlToken][] = [
    ["idx_org_nodes_children", false, selectRoots(tenantId, after, 51)],
    ["idx_org_nodes_children", false, selectChildren(tenantId, nodeId, after, 51)],
    ["idx_org_path_ancestor_depth", false, selectDescendants(below, [0, nodeId], 51)],
    ["idx_org_path_ancestor_depth", false, selectDescendants({ ...below, maxDepth: 3 }, [2, after], 51)],
    ["idx_org_path_desc_ancestor", true, selectAncestors(tenantId, nodeId)],
  ];
  for (const [index, sorts, statement] of statements) {
    const plan = await planOf(server.pool, statement);
    expect(indexesOf(plan)).toContain(index);
    expect(scannedOf(plan)).toEqual([]);
    expect({ index, sorts: sortsOf(plan) > 0 }).toEqual({ index, sorts });
  }
});
