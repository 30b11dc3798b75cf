import { sql } from "slonik";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { lockWaiters } from "../support/lock-waiters.ts";
import { printedSeed, randomNumbers } from "../support/random.ts";
import { refused } from "../support/refusals.ts";
import { type TestService, launchService } from "../support/service.ts";
import { addNode, pathDifferences, plantSubtree } from "../support/trees.ts";

const DEPTH_MAX = 11;
const WRITERS = 16;
const OPERATIONS = 10_000;

let server: TestService;

beforeAll(async () => {
  server = await launchService("grpc", { env: { TREE_DEPTH_MAX: `${DEPTH_MAX}` } });
});
afterAll(() => server.stop());

/** What became of a call: `answered`, or the reason of its refusal. */
const outcomeOf = (call: Promise<unknown>): Promise<string> =>
  call.then(
    () => "answered",
    async (error: unknown) => (await refused(Promise.reject(error as Error))).reason ?? "no reason",
  );

/** A node below a root, and another root that it can move to. */
const addMovable = async (service = server) => {
  const tenantId = await service.addTenant();
  const [from, to] = [(await addNode(service, tenantId)).nodeId, (await addNode(service, tenantId)).nodeId];
  const { nodeId } = await addNode(service, tenantId, from);
  return { tenantId, from, to, nodeId };
};

test("16 writers with 10,000 random creates, moves, deactivations and deletes leave the closure table exact", async () => {
  const seed = printedSeed();
  const tenantId = await server.addTenant();
  const nodeIds = [(await addNode(server, tenantId)).nodeId];
  const outcomes = new Map<string, number>();

  const operate = async (random: (bound: number) => number) => {
    const any = () => nodeIds[random(nodeIds.length)]!;
    const nodeId = any();
    const dice = random(100);
    if (dice < 40) {
      const parentNodeId = random(20) === 0 ? undefined : nodeId;
      nodeIds.push((await addNode(server, tenantId, parentNodeId)).nodeId);
    } else if (dice < 75) {
      const newParentNodeId = random(10) === 0 ? {} : { newParentNodeId: any() };
      await server.org.moveNode({ tenantId, nodeId, ...newParentNodeId });
    } else if (dice < 83) await server.org.deactivateNode({ tenantId, nodeId });
    else if (dice < 90) await server.org.activateNode({ tenantId, nodeId });
    else await server.org.deleteNode({ tenantId, nodeId });
  };
  const write = async (_: unknown, writer: number) => {
    const random = randomNumbers(seed + writer);
    for (let count = 0; count < OPERATIONS / WRITERS; count++) {
      const outcome = await outcomeOf(operate(random));
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    }
  };
  await Promise.all(Array.from({ length: WRITERS }, write));

  expect([...outcomes.keys()].sort()).toEqual([
    "NODE_CYCLE",
    "NODE_IN_USE",
    "NODE_NOT_FOUND",
    "NODE_TOO_DEEP",
    "answered",
  ]);
  expect(outcomes.get("answered")).toBeGreaterThan(OPERATIONS / 2);
  expect(await pathDifferences(server, tenantId)).toEqual([]);
  const deepest = sql.type(z.object({ depth: z.number(), nodes: z.bigint() }))`
    SELECT coalesce(max(p.depth_val), 0) AS depth, (SELECT count(*) FROM org_nodes WHERE tenant_id = ${tenantId}::uuid) AS nodes
    FROM org_node_paths p WHERE p.tenant_id = ${tenantId}::uuid`;
  const { depth, nodes } = await server.pool.one(deepest);
  expect(depth).toBe(DEPTH_MAX);
  expect(nodes).toBeGreaterThan(100n);
}, 240_000);

test("of two opposite moves at once one is a cycle, a hundred times", async () => {
  const tenantId = await server.addTenant();
  const [left, right] = [(await addNode(server, tenantId)).nodeId, (await addNode(server, tenantId)).nodeId];
  const under = (nodeId: string, newParentNodeId: string) =>
    outcomeOf(server.org.moveNode({ tenantId, nodeId, newParentNodeId }));
  for (let round = 0; round < 100; round++) {
    expect((await Promise.all([under(left, right), under(right, left)])).sort()).toEqual(["NODE_CYCLE", "answered"]);
    await Promise.all([left, right].map((nodeId) => server.org.moveNode({ tenantId, nodeId })));
  }
  expect(await pathDifferences(server, tenantId)).toEqual([]);
});

test("children that are created while their parent moves or goes are where it is, or nowhere", async () => {
  const tenantId = await server.addTenant();
  const [left, right] = [(await addNode(server, tenantId)).nodeId, (await addNode(server, tenantId)).nodeId];
  for (let round = 0; round < 20; round++) {
    const { nodeId } = await addNode(server, tenantId, left);
    const deletion = outcomeOf(server.org.deleteNode({ tenantId, nodeId }));
    const outcomes = await Promise.all([
      outcomeOf(server.org.moveNode({ tenantId, nodeId, newParentNodeId: right })),
      ...Array.from({ length: 4 }, () => outcomeOf(addNode(server, tenantId, nodeId))),
    ]);
    const isDeleted = (await deletion) === "answered";
    expect(outcomes.every((outcome) => outcome === "answered" || (isDeleted && outcome === "NODE_NOT_FOUND"))).toBe(
      true,
    );
  }
  expect(await pathDifferences(server, tenantId)).toEqual([]);
});

test("while 20,000 nodes move, and fifty writers of their tenant wait, nobody else does", async () => {
  const { tenantId, to, nodeId } = await addMovable();
  await plantSubtree(server, tenantId, nodeId, 20_000);
  const moved = new AbortController();
  const move = server.org.moveNode({ tenantId, nodeId, newParentNodeId: to }).finally(() => moved.abort());
  const waiting = Promise.all(Array.from({ length: 50 }, () => outcomeOf(addNode(server, tenantId, nodeId))));
  const waits: number[] = [];
  const depths = new Set<number | undefined>();
  while (!moved.signal.aborted) {
    const started = performance.now();
    const { node } = await server.org.getNode({ tenantId, nodeId });
    await server.org.updateTenant({ tenantId, label: `Tenant ${waits.length}` });
    depths.add(node?.depth);
    waits.push(performance.now() - started);
  }
  expect((await move).node?.parentNodeId).toBe(to);
  await waiting;
  // How many there are is how long the move took; a median wants a few.
  expect(waits.length).toBeGreaterThan(4);
  expect(waits.toSorted((a, b) => a - b)[Math.floor(waits.length / 2)]).toBeLessThan(100);
  expect([...depths]).toEqual([1]);
  expect(await pathDifferences(server, tenantId)).toEqual([]);
}, 90_000);

test("while more trees are written than there are connections, others read on", async () => {
  const { poolMax } = server.config.database;
  const movables = await Promise.all(Array.from({ length: poolMax + 1 }, () => addMovable()));
  const nodeIds = movables.map(({ nodeId }) => nodeId);
  await server.pool.transaction(async (tx) => {
    await tx.query(sql.unsafe`
      SELECT FROM org_nodes WHERE org_node_id = ANY(${sql.array(nodeIds, "uuid")}) FOR UPDATE`);
    const leaving = new AbortController();
    const moves = movables.map(({ tenantId, nodeId, to }) =>
      server.org.moveNode({ tenantId, nodeId, newParentNodeId: to }, { signal: leaving.signal, timeoutMs: 60_000 }),
    );
    const gone = Promise.allSettled(moves);
    await expect.poll(() => lockWaiters(tx), { interval: 5 }).toBeGreaterThanOrEqual(poolMax * 0.8);
    for (const { tenantId, nodeId } of movables) {
      const { node } = await server.org.getNode({ tenantId, nodeId }, { timeoutMs: 5_000 });
      expect(node?.active).toBe(true);
    }
    leaving.abort();
    await gone;
  });
});

test("writers who give up while they wait for the tree leave the connections to others", async () => {
  const { tenantId, from, to, nodeId } = await addMovable();
  await server.pool.transaction(async (tx) => {
    await tx.query(sql.unsafe`SELECT FROM tenant_tree_locks WHERE tenant_id = ${tenantId}::uuid FOR UPDATE`);
    for (let writer = 1; writer <= server.config.database.poolMax; writer++) {
      const leaving = new AbortController();
      const move = { tenantId, nodeId, newParentNodeId: to };
      const moved = outcomeOf(server.org.moveNode(move, { signal: leaving.signal, timeoutMs: 60_000 }));
      await expect.poll(() => lockWaiters(tx), { interval: 5 }).toBe(Math.min(writer, 2));
      leaving.abort();
      await moved.catch(() => undefined);
    }
    expect(await lockWaiters(tx)).toBe(2);
    expect((await server.org.getTenant({ tenantId })).tenant?.tenantId).toBe(tenantId);
  });
  await addNode(server, tenantId, nodeId);
  expect((await server.org.getNode({ tenantId, nodeId })).node?.parentNodeId).toBe(from);
  expect(await pathDifferences(server, tenantId)).toEqual([]);
});

test.each([
  ["of the tree", "10"],
  ["of the only connection", "1"],
])("a move whose caller gives up lets go %s at once, however long it would have taken", async (_, poolMax) => {
  const service = await launchService("grpc", { env: { DATABASE_POOL_MAX: poolMax } });
  onTestFinished(service.stop);
  const { tenantId, from, to, nodeId } = await addMovable(service);
  await service.pool.transaction(async (tx) => {
    // What a move writes last, so that it is held in the middle.
    await tx.query(sql.unsafe`SELECT FROM org_nodes WHERE org_node_id = ${nodeId}::uuid FOR UPDATE`);
    const leaving = new AbortController();
    const move = outcomeOf(
      service.org.moveNode({ tenantId, nodeId, newParentNodeId: to }, { signal: leaving.signal, timeoutMs: 60_000 }),
    );
    await expect.poll(() => lockWaiters(tx), { interval: 5 }).toBe(1);
    leaving.abort();
    await move.catch(() => undefined);
    await expect.poll(() => lockWaiters(tx), { interval: 5 }).toBe(0);
    await addNode(service, tenantId, from);
  });
  expect((await service.org.getNode({ tenantId, nodeId })).node?.parentNodeId).toBe(from);
  expect(await pathDifferences(service, tenantId)).toEqual([]);
});
