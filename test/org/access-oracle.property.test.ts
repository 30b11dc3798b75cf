import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { AccessScope, DecisionReason } from "../../src/gen/org/v1/org_pb.ts";
import { type Access, createOracle } from "../support/access-oracle.ts";
import { type OrgWorld, type PlantedWindow, plantWorld } from "../support/org-world.ts";
import { printedSeed } from "../support/random.ts";
import { type TestService, startService } from "../support/service.ts";
import { plantUnchecked } from "../support/admin.ts";

const WORLDS = 1_000;
const KEYS = ["a", "b", "c"];
const NEVER = "never.made";
const ROUNDS = 6;

const capabilities = KEYS.map((key) => ({ id: randomUUID(), key: `oracle.${key}` }));
const ASKED = [...capabilities.map(({ key }) => key), NEVER];

// An hour to either side: no window's edge passes while the test runs.
const windows: fc.Arbitrary<PlantedWindow> = fc.constantFrom(
  { start: -3_600, end: null },
  { start: -3_600, end: 3_600 },
  { start: -7_200, end: -3_600 },
  { start: 3_600, end: null },
  { start: 3_600, end: 7_200, cancelled: true },
  { start: -3_600, end: null, cancelled: true },
);

const at = fc.nat(1_000);
// More than a decision looks at one by one.
const times = fc.integer({ min: 0, max: 9 }).map((n) => (n === 0 ? 70 : 1));
const mostly = fc.integer({ min: 0, max: 9 }).map((n) => n > 0);
const pick = <T>(list: readonly T[], n: number): T => list[n % list.length] as T;

/** One tenant, its rows by random numbers; chains as well as bushes, several roots. */
const worlds = fc
  .record({
    active: mostly,
    users: fc.array(mostly, { minLength: 1, maxLength: 4 }),
    deep: fc.boolean(),
    nodes: fc.array(fc.record({ parent: at, root: fc.boolean(), active: mostly }), { minLength: 1, maxLength: 14 }),
    roles: fc.array(fc.subarray(capabilities), { minLength: 1, maxLength: 3 }),
    assignments: fc.array(fc.record({ user: at, node: at, role: at, window: windows, times }), { maxLength: 12 }),
    grants: fc.array(
      fc.record({ user: at, node: at, scope: fc.constantFrom("read" as const, "analyze" as const), window: windows }),
      { maxLength: 8 },
    ),
  })
  .map((shape): OrgWorld => {
    const tenantId = randomUUID();
    const users = shape.users.map((active) => ({ id: randomUUID(), tenantId, active }));
    const nodes: OrgWorld["nodes"][number][] = [];
    for (const { parent, root, active } of shape.nodes) {
      const above = shape.deep ? nodes.at(-1) : pick(nodes, parent);
      const parentId = nodes.length === 0 || (root && !shape.deep) ? null : (above?.id ?? null);
      nodes.push({ id: randomUUID(), tenantId, parentId, active });
    }
    const roles = shape.roles.map((held) => ({ id: randomUUID(), tenantId, capabilityIds: held.map(({ id }) => id) }));
    const holder = ({ user, node, window }: { user: number; node: number; window: PlantedWindow }) => ({
      ...window,
      id: randomUUID(),
      tenantId,
      userId: pick(users, user).id,
      nodeId: pick(nodes, node).id,
    });
    return {
      tenants: [{ id: tenantId, active: shape.active }],
      users,
      nodes,
      capabilities: [],
      roles,
      assignments: shape.assignments.flatMap((one) =>
        Array.from({ length: one.times }, () => ({ ...holder(one), roleId: pick(roles, one.role).id })),
      ),
      grants: shape.grants.map((one) => ({ ...holder(one), scope: one.scope })),
    };
  });

const merged = (parts: readonly OrgWorld[]): OrgWorld => ({
  tenants: parts.flatMap(({ tenants }) => tenants),
  users: parts.flatMap(({ users }) => users),
  nodes: parts.flatMap(({ nodes }) => nodes),
  capabilities,
  roles: parts.flatMap(({ roles }) => roles),
  assignments: parts.flatMap(({ assignments }) => assignments),
  grants: parts.flatMap(({ grants }) => grants),
});

const scopes = { read: AccessScope.READ, analyze: AccessScope.ANALYZE };

const requested = (access: Access) =>
  "scope" in access
    ? { case: "scope" as const, value: scopes[access.scope] }
    : { case: "capability" as const, value: access.capability };

/** All of a list, by pages of two. */
const all = async <T>(list: (pageToken: string) => Promise<{ items: readonly T[]; nextPageToken: string }>) => {
  const items: T[] = [];
  let pageToken = "";
  do {
    const page = await list(pageToken);
    items.push(...page.items);
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return items;
};

const ACCESSES: readonly Access[] = [
  ...capabilities.map(({ key }) => ({ capability: key })),
  { scope: "read" },
  { scope: "analyze" },
];

/** Compares every RPC with the oracle in one tenant, `stranger` being a world whose ids are unknown here. */
const compare = async ({ org }: TestService, world: OrgWorld, stranger: OrgWorld) => {
  const oracle = createOracle({ ...world, capabilities });
  const tenantId = world.tenants[0]!.id;
  const userIds = [...world.users, stranger.users[0]!].map(({ id }) => id);
  const nodeIds = [...world.nodes, stranger.nodes[0]!].map(({ id }) => id);
  const pairs = userIds.flatMap((userId) => nodeIds.map((nodeId) => ({ userId, nodeId })));
  const checks = pairs.flatMap((pair) => ASKED.map((capability) => ({ ...pair, capability })));
  const expected = checks.map(({ userId, nodeId, capability }) =>
    oracle.decide(tenantId, userId, nodeId, { capability }),
  );
  const { results } = await org.batchCheckAccess({ tenantId, checks });
  expect(results.map(({ reason }) => reason)).toEqual(expected.map((code) => DecisionReason[code]));
  expect(results.map(({ allowed }) => allowed)).toEqual(expected.map((code) => code === "GRANTED"));

  for (const [index, { userId, nodeId }] of pairs.filter((_, index) => index % 5 === 0).entries()) {
    for (const scope of ["read", "analyze"] as const) {
      const { reason } = await org.checkVisibility({ tenantId, userId, nodeId, scope: scopes[scope] });
      expect(reason).toBe(DecisionReason[oracle.decide(tenantId, userId, nodeId, { scope })]);
    }
    const { capabilityKeys } = await org.listEffectiveCapabilities({ tenantId, userId, nodeId });
    const allowed = (capability: string) => oracle.decide(tenantId, userId, nodeId, { capability }) === "GRANTED";
    expect(capabilityKeys).toEqual(capabilities.map(({ key }) => key).filter(allowed));
    const check = { tenantId, userId, nodeId, capability: pick(ASKED, index) };
    const explained = await org.explainAccess(check);
    const single = await org.checkAccess(check);
    expect({ allowed: explained.allowed, reason: explained.reason }).toEqual({
      allowed: single.allowed,
      reason: single.reason,
    });
    const { grants, nearMisses } = oracle.explain(tenantId, userId, nodeId, check.capability);
    expect(
      explained.grants.map(({ assignment, path }) => [assignment?.assignmentId, path.map((on) => on.nodeId)]),
    ).toEqual(grants.map(({ id, path }) => [id, path]));
    expect(explained.nearMisses.map(({ assignment, why }) => [assignment?.assignmentId, why])).toEqual(
      nearMisses.map(({ id, why }) => [id, why]),
    );
  }

  for (const access of ACCESSES) {
    const allows = (userId: string, nodeId: string) => oracle.decide(tenantId, userId, nodeId, access) === "GRANTED";
    const request = { tenantId, access: requested(access), pageSize: 2 };
    for (const userId of userIds) {
      const listed = await all(async (pageToken) => {
        const { nodes, nextPageToken } = await org.listAccessibleNodes({ ...request, userId, pageToken });
        return { items: nodes.map(({ nodeId }) => nodeId), nextPageToken };
      });
      expect(listed).toEqual(nodeIds.filter((nodeId) => allows(userId, nodeId)).sort());
    }
    for (const nodeId of nodeIds.slice(-4)) {
      const listed = await all(async (pageToken) => {
        const { users, nextPageToken } = await org.listUsersWithAccess({ ...request, nodeId, pageToken });
        return { items: users, nextPageToken };
      });
      expect(listed.map(({ userId }) => userId)).toEqual(userIds.filter((userId) => allows(userId, nodeId)).sort());
      for (const { userId, via } of listed) {
        expect(oracle.giving(userId, nodeId, access).map(({ id }) => id)).toContain(via.value);
      }
    }
  }
};

test("all decisions, lists and explanations of a tenant agree with the oracle", { timeout: 120_000 }, async () => {
  const server = await startService("grpc");
  const parts = fc.sample(worlds, { numRuns: WORLDS, seed: printedSeed() });
  await plantUnchecked(server, async (tx) => {
    await plantWorld(tx, merged(parts));
  });
  // The batch alone is compared in every world, the costlier calls in some of them.
  for (const [index, world] of parts.slice(0, ROUNDS).entries()) await compare(server, world, parts[index + 1]!);
  for (const [index, world] of parts.entries()) {
    const oracle = createOracle({ ...world, capabilities });
    const tenantId = world.tenants[0]!.id;
    const nodes = [...world.nodes, parts[(index + 1) % WORLDS]!.nodes[0]!];
    const checks = world.users.flatMap(({ id: userId }) =>
      nodes.flatMap(({ id: nodeId }) => capabilities.map(({ key: capability }) => ({ userId, nodeId, capability }))),
    );
    const { results } = await server.org.batchCheckAccess({ tenantId, checks });
    expect(results.map(({ reason }) => reason)).toEqual(
      checks.map(
        ({ userId, nodeId, capability }) => DecisionReason[oracle.decide(tenantId, userId, nodeId, { capability })],
      ),
    );
  }
});
