import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { expectRefusal, refused } from "../support/refusals.ts";
import { launchService, startService, transports } from "../support/service.ts";
import { addChain, addNode, eventsOf, pathDifferences, plantSubtree } from "../support/trees.ts";

describe.each(transports)("%s", (transport) => {
  test("a move carries all that is below, and writes one event with both parents", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const from = await addChain(server, tenantId, 3);
    const to = await addChain(server, tenantId, 2);
    const moved = await addChain(server, tenantId, 3, from[2]);
    const nodeId = moved[0]!;
    const move = (newParentNodeId?: string) =>
      server.org.moveNode({ tenantId, nodeId, ...(newParentNodeId && { newParentNodeId }) });
    const ancestors = async (id: string) =>
      (await server.org.listAncestors({ tenantId, nodeId: id })).nodes.map((node) => node.nodeId);

    expect((await move(to[1]!.toUpperCase())).node).toMatchObject({ nodeId, parentNodeId: to[1], depth: 2 });
    expect(await ancestors(moved[2]!)).toEqual([...to, ...moved.slice(0, 2)]);
    const { node: root } = await move();
    expect(root).toMatchObject({ depth: 0 });
    expect(root?.parentNodeId).toBeUndefined();
    expect(await ancestors(moved[2]!)).toEqual(moved.slice(0, 2));
    // A move to where it stands changes nothing.
    expect((await move()).node).toEqual(root);
    await move(from[0]);
    expect((await server.org.getNode({ tenantId, nodeId: moved[2]! })).node?.depth).toBe(3);
    expect((await move(from[0])).node).toMatchObject({ parentNodeId: from[0], depth: 1 });
    expect((await eventsOf(server, nodeId)).slice(1)).toEqual([
      { action_key: "org.node.move", payload: { former_parent_node_id: from[2], parent_node_id: to[1] } },
      { action_key: "org.node.move", payload: { former_parent_node_id: to[1] } },
      { action_key: "org.node.move", payload: { parent_node_id: from[0] } },
    ]);
    expect(await pathDifferences(server, tenantId)).toEqual([]);
  });

  test("a move onto itself or below itself is a cycle; an unknown node or parent is not found", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const chain = await addChain(server, tenantId, 3);
    const foreign = (await addNode(server, other)).nodeId;
    const move = (nodeId: string, newParentNodeId: string) =>
      server.org.moveNode({ tenantId, nodeId, newParentNodeId });
    for (const below of chain) {
      const { metadata } = await expectRefusal(move(chain[0]!, below.toUpperCase()), "NODE_CYCLE");
      expect(metadata).toMatchObject({ node_id: chain[0] });
    }
    for (const unknown of [foreign, randomUUID()]) {
      for (const [nodeId, parent] of [
        [chain[1]!, unknown],
        [unknown, chain[1]!],
      ] as const) {
        expect((await expectRefusal(move(nodeId, parent), "NODE_NOT_FOUND")).metadata).toMatchObject({
          node_id: unknown,
        });
      }
    }
    await expectRefusal(server.org.moveNode({ tenantId: randomUUID(), nodeId: chain[1]! }), "NODE_NOT_FOUND");
    expect(await pathDifferences(server, tenantId)).toEqual([]);
    expect(await eventsOf(server, chain[0]!)).toHaveLength(1);
  });

  test("an inactive node is moved and filled as an active one", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [left, right] = [await addNode(server, tenantId), await addNode(server, tenantId)];
    for (const { nodeId } of [left, right]) await server.org.deactivateNode({ tenantId, nodeId });
    const { node } = await server.org.moveNode({ tenantId, nodeId: left.nodeId, newParentNodeId: right.nodeId });
    expect(node).toMatchObject({ active: false, depth: 1 });
  });
});

/** A tree as children know their parents, and nothing else. */
class Model {
  readonly parents = new Map<string, string | undefined>();

  chain(nodeId: string): string[] {
    const parent = this.parents.get(nodeId);
    return parent === undefined ? [nodeId] : [nodeId, ...this.chain(parent)];
  }

  height(nodeId: string): number {
    const children = [...this.parents].filter(([, parent]) => parent === nodeId);
    return 1 + Math.max(0, ...children.map(([child]) => this.height(child)));
  }

  move(nodeId: string, parent: string | undefined, depthMax: number): string {
    if (this.parents.get(nodeId) === parent) return "answered";
    const above = parent === undefined ? [] : this.chain(parent);
    if (above.includes(nodeId)) return "NODE_CYCLE";
    if (above.length + this.height(nodeId) - 1 > depthMax) return "NODE_TOO_DEEP";
    this.parents.set(nodeId, parent);
    return "answered";
  }

  add(nodeId: string, parent: string | undefined, depthMax: number): string {
    if (parent !== undefined && this.chain(parent).length > depthMax) return "NODE_TOO_DEEP";
    this.parents.set(nodeId, parent);
    return "answered";
  }

  delete(nodeId: string): string {
    if ([...this.parents.values()].includes(nodeId)) return "NODE_IN_USE";
    this.parents.delete(nodeId);
    return "answered";
  }
}

test("whatever is created, moved and deleted, the tree is that of a plain model and its closure table exact", async () => {
  const depthMax = 3;
  const server = await launchService("grpc", { env: { TREE_DEPTH_MAX: `${depthMax}` } });
  const { org } = server;
  const outcomeOf = (call: Promise<unknown>) =>
    call.then(
      () => "answered",
      async (error: unknown) => (await refused(Promise.reject(error as Error))).reason,
    );
  const step = fc.record({
    kind: fc.constantFrom("add", "add", "move", "move", "delete"),
    node: fc.nat(1_000),
    parent: fc.option(fc.nat(1_000), { nil: undefined, freq: 6 }),
  });
  try {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), async (steps) => {
        const tenantId = await server.addTenant();
        const model = new Model();
        for (const { kind, node, parent: chosen } of steps) {
          const known = [...model.parents.keys()];
          const pick = (index: number) => known[index % known.length];
          const parent = chosen === undefined ? undefined : pick(chosen);
          const nodeId = kind === "add" ? randomUUID() : pick(node);
          if (nodeId === undefined) continue;
          if (kind === "add") {
            const create = {
              tenantId,
              nodeId,
              nodeType: "place",
              label: "Place",
              ...(parent && { parentNodeId: parent }),
            };
            expect(await outcomeOf(org.createNode(create))).toBe(model.add(nodeId, parent, depthMax));
          } else if (kind === "move") {
            const move = org.moveNode({ tenantId, nodeId, ...(parent && { newParentNodeId: parent }) });
            expect(await outcomeOf(move)).toBe(model.move(nodeId, parent, depthMax));
          } else expect(await outcomeOf(org.deleteNode({ tenantId, nodeId }))).toBe(model.delete(nodeId));
        }
        expect(await pathDifferences(server, tenantId)).toEqual([]);
        const roots = [...model.parents].filter(([, parent]) => parent === undefined).map(([nodeId]) => nodeId);
        const listed = (await org.listChildren({ tenantId, pageSize: 1_000 })).nodes.map(({ nodeId }) => nodeId);
        expect(listed).toEqual(roots.sort());
        for (const nodeId of model.parents.keys()) {
          const { nodes } = await org.listAncestors({ tenantId, nodeId });
          expect(nodes.map((node) => node.nodeId)).toEqual(model.chain(nodeId).slice(1).reverse());
        }
      }),
      { numRuns: 12 },
    );
  } finally {
    await server.stop();
  }
});

test("a move may take longer than other statements, up to its own limit, and is then undone", async () => {
  const limits = { DATABASE_STATEMENT_TIMEOUT: "300ms" };
  const move = async (env: Readonly<Record<string, string>>) => {
    const server = await launchService("grpc", { env: { ...limits, ...env } });
    try {
      const tenantId = await server.addTenant();
      const [to, { nodeId }] = [await addNode(server, tenantId), await addNode(server, tenantId)];
      await plantSubtree(server, tenantId, nodeId, 10);
      // Slower for each path than a disk is, and not otherwise.
      await server.pool.query(sql.unsafe`
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END'`);
      await server.pool.query(sql.unsafe`
        CREATE TRIGGER slow BEFORE INSERT ON org_node_paths FOR EACH ROW EXECUTE FUNCTION slow()`);
      const request = { tenantId, nodeId, newParentNodeId: to.nodeId };
      const outcome = await server.org.moveNode(request).then(
        ({ node }) => node?.depth,
        async (error: unknown) => (await refused(Promise.reject(error as Error))).reason,
      );
      expect(await pathDifferences(server, tenantId)).toEqual([]);
      return outcome;
    } finally {
      await server.stop();
    }
  };
  expect(await move({})).toBe(1);
  expect(await move({ TREE_MOVE_TIMEOUT: "400ms" })).toBe("DATABASE_UNAVAILABLE");
});
