import { expect, test } from "vitest";
import { AccessScope } from "../../src/gen/org/v1/org_pb.ts";
import { selectDecisions } from "../../src/org/access.ts";
import { leastAfter } from "../../src/org/access-pages.ts";
import { selectNodesByCapability, selectNodesByScope } from "../../src/org/accessible-nodes.ts";
import { selectVisibilities } from "../../src/org/visibility-checks.ts";
import { blocksReadOf, planOf } from "../support/plans.ts";
import { startService } from "../support/service.ts";
import { plantWide } from "../support/wide-world.ts";

const ENDED = 6_000;
const CHECKS = 1_000;

test("what has ended on one node, however much, costs a decision there and below nothing", async () => {
  const server = await startService("grpc");
  const over = { start: -7_200, end: -3_600, user: 0, node: 0 };
  const world = await plantWide(
    server,
    { nodes: 2_100, users: 2 },
    Array.from({ length: ENDED }, () => over),
  );
  const { tenantId, nodes, users, capability } = world;
  const userId = users[0]!;
  const checks = Array.from({ length: CHECKS }, (_, n) => ({ tenantId, userId, nodeId: nodes[n]! }));
  const asked = { tenantId, userId, from: leastAfter(undefined), limit: 51 };
  const perNode = 60;
  for (const [statement, looks] of [
    [selectDecisions(checks.map((check) => ({ ...check, capability }))), CHECKS],
    [selectVisibilities(checks.map((check) => ({ ...check, scope: "read" as const }))), CHECKS],
    [selectNodesByCapability({ ...asked, access: capability }), 2_000],
    [selectNodesByScope({ ...asked, access: "read" }), 2_000],
  ] as const) {
    expect(blocksReadOf(await planOf(server.pool, statement))).toBeLessThan(looks * perNode);
  }
  const { results } = await server.org.batchCheckAccess({
    tenantId,
    checks: checks.map(({ nodeId }) => ({ userId, nodeId, capability })),
  });
  expect(results.some(({ allowed }) => allowed)).toBe(false);
  const access = { case: "scope", value: AccessScope.READ } as const;
  expect((await server.org.listAccessibleNodes({ tenantId, userId, access })).nodes).toEqual([]);
});
