import { randomUUID } from "node:crypto";
import { beforeAll, expect, test } from "vitest";
import { selectDecisions } from "../../src/org/access.ts";
import { leastAfter } from "../../src/org/access-pages.ts";
import { selectNodesByCapability } from "../../src/org/accessible-nodes.ts";
import { DecisionReason } from "../../src/gen/org/v1/org_pb.ts";
import { plantUnchecked } from "../support/admin.ts";
import { plantWorld } from "../support/org-world.ts";
import { blocksReadOf, planOf } from "../support/plans.ts";
import { uniqueCapability } from "../support/roles.ts";
import { type TestService, startService } from "../support/service.ts";

const MUCH = 3_000;
/** As many as a list reads of what gives it something, before it looks through the nodes instead. */
const MORE = 5_000;
const LEAVES = 50;

const tenantId = randomUUID();
const ids = (count: number) => Array.from({ length: count }, () => randomUUID());
const users = { few: randomUUID(), many: randomUUID(), elsewhere: randomUUID() };
const [root = "", middle = "", beside = ""] = ids(3);
const leaves = ids(LEAVES);

const able = (name: string) => ({ capability: { id: randomUUID(), key: uniqueCapability(name) }, role: randomUUID() });
const [unheld, last, ended, aside] = [able("unheld"), able("last"), able("ended"), able("aside")];
const ABLE = [unheld, last, ended, aside];
// Roles without any capability, of which each user has thousands on the line.
const others = ids(MUCH);

// What ends later is found later.
const soon = { start: -60, end: 3_600 };
const always = { start: -60, end: null };
const over = { start: -7_200, end: -3_600 };

const held = (userId: string, nodeId: string, roleId: string, window: typeof soon | typeof always) => {
  return { ...window, id: randomUUID(), tenantId, userId, nodeId, roleId };
};
const below = (parentId: string | null) => (id: string) => ({ id, tenantId, parentId, active: true });

let server: TestService;
beforeAll(async () => {
  server = await startService("grpc");
  await plantUnchecked(server, async (tx) => {
    await plantWorld(tx, {
      tenants: [{ id: tenantId, active: true }],
      users: Object.values(users).map((id) => ({ id, tenantId, active: true })),
      nodes: [below(null)(root), ...[middle, beside].map(below(root)), ...leaves.map(below(middle))],
      capabilities: ABLE.map(({ capability }) => capability),
      roles: [
        ...ABLE.map(({ capability, role }) => ({ id: role, tenantId, capabilityIds: [capability.id] })),
        ...others.map((id) => ({ id, tenantId, capabilityIds: [] })),
      ],
      assignments: [
        ...others.flatMap((role, n) => [
          held(users.few, n % 2 === 0 ? root : middle, others[n % 3]!, soon),
          held(users.many, root, role, soon),
          held(users.elsewhere, root, others[0]!, soon),
        ]),
        ...[users.few, users.many].flatMap((user) => [
          held(user, root, last.role, always),
          held(user, root, ended.role, over),
          held(user, beside, aside.role, always),
        ]),
        ...Array.from({ length: MORE }, () => held(users.elsewhere, beside, last.role, always)),
      ],
    });
  });
});

const nodesBy = ({ capability }: typeof last, user: keyof typeof users) => {
  if (capability === last.capability) return user === "elsewhere" ? [beside] : [root, middle, beside, ...leaves];
  return capability === aside.capability && user !== "elsewhere" ? [beside] : [];
};

const NAMES = ["few", "many", "elsewhere"] as const;

test.each(NAMES)(
  "what %s has on one line without the capability, however much, costs a check nothing",
  async (user) => {
    const asked = ABLE.flatMap((one) =>
      [beside, ...leaves].map((nodeId) => {
        const check = { userId: users[user], nodeId, capability: one.capability.key };
        return {
          check,
          reason: nodesBy(one, user).includes(nodeId) ? DecisionReason.GRANTED : DecisionReason.NO_GRANT,
        };
      }),
    );
    const checks = asked.map(({ check }) => check);
    const { results } = await server.org.batchCheckAccess({ tenantId, checks });
    expect(results.map(({ reason }) => reason)).toEqual(asked.map(({ reason }) => reason));
    const statement = selectDecisions(checks.map((check) => ({ ...check, tenantId })));
    // 64 looked at, each by two or three blocks; all of them would be 3,000.
    expect(blocksReadOf(await planOf(server.pool, statement))).toBeLessThan(checks.length * 300);
  },
);

test.each(NAMES)("what %s has on one line without the capability costs a list of nodes nothing", async (user) => {
  for (const one of ABLE) {
    const access = { case: "capability" as const, value: one.capability.key };
    const request = { tenantId, userId: users[user], access, pageSize: 1_000 };
    const { nodes, nextPageToken } = await server.org.listAccessibleNodes(request);
    expect(nodes.map(({ nodeId }) => nodeId)).toEqual(nodesBy(one, user).sort());
    expect(nextPageToken).toBe("");
    const page = { tenantId, userId: users[user], access: access.value, from: leastAfter(undefined), limit: 51 };
    const blocks = blocksReadOf(await planOf(server.pool, selectNodesByCapability(page)));
    // Each of the tree's nodes once as by a check, beside what gives something.
    expect(blocks).toBeLessThan(MORE + LEAVES * 300);
  }
});
