import { randomUUID } from "node:crypto";
import { expect, test } from "vitest";
import { AccessScope, DecisionReason } from "../../src/gen/org/v1/org_pb.ts";
import { leastAfter } from "../../src/org/access-pages.ts";
import { selectNodesByScope } from "../../src/org/accessible-nodes.ts";
import { selectVisibilities } from "../../src/org/visibility-checks.ts";
import { plantUnchecked } from "../support/admin.ts";
import { plantWorld } from "../support/org-world.ts";
import { blocksReadOf, planOf } from "../support/plans.ts";
import { startService } from "../support/service.ts";

/** As many as make a list look through the nodes, each as by a check. */
const MUCH = 5_000;
const LEAVES = 50;

test("what somebody may read by thousands of grants costs what he may not analyse nothing", async () => {
  const server = await startService("grpc");
  const [tenantId, userId, root] = [randomUUID(), randomUUID(), randomUUID()];
  const leaves = Array.from({ length: LEAVES }, () => randomUUID());
  const below = (parentId: string | null) => (id: string) => ({ id, tenantId, parentId, active: true });
  const grants = Array.from({ length: MUCH }, () => {
    return { id: randomUUID(), tenantId, userId, nodeId: root, scope: "read" as const, start: -60, end: 3_600 };
  });
  await plantUnchecked(server, (tx) =>
    plantWorld(tx, {
      tenants: [{ id: tenantId, active: true }],
      users: [{ id: userId, tenantId, active: true }],
      nodes: [below(null)(root), ...leaves.map(below(root))],
      grants,
    }),
  );

  const leaf = leaves[0]!;
  const reasonOf = async (scope: AccessScope) =>
    (await server.org.checkVisibility({ tenantId, userId, nodeId: leaf, scope })).reason;
  expect(await reasonOf(AccessScope.READ)).toBe(DecisionReason.GRANTED);
  expect(await reasonOf(AccessScope.ANALYZE)).toBe(DecisionReason.NO_GRANT);
  for (const scope of ["read", "analyze"] as const) {
    const checks = leaves.map((nodeId) => ({ tenantId, userId, nodeId, scope }));
    expect(blocksReadOf(await planOf(server.pool, selectVisibilities(checks)))).toBeLessThan(LEAVES * 40);
  }

  const listed = async (scope: AccessScope) => {
    const access = { case: "scope" as const, value: scope };
    const { nodes } = await server.org.listAccessibleNodes({ tenantId, userId, access, pageSize: 1_000 });
    return nodes.map(({ nodeId }) => nodeId);
  };
  expect(await listed(AccessScope.READ)).toEqual([root, ...leaves].sort());
  expect(await listed(AccessScope.ANALYZE)).toEqual([]);
  const page = { tenantId, userId, access: "analyze" as const, from: leastAfter(undefined), limit: 51 };
  // The user's grants once, and each of the nodes as by a check.
  expect(blocksReadOf(await planOf(server.pool, selectNodesByScope(page)))).toBeLessThan(MUCH + LEAVES * 40);
});
