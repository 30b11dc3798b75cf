import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { transact } from "../../src/db/transact.ts";
import { AccessScope, DecisionReason } from "../../src/gen/org/v1/org_pb.ts";
import { selectDecisions } from "../../src/org/access.ts";
import { leastAfter } from "../../src/org/access-pages.ts";
import { selectNodesByCapability, selectNodesByScope } from "../../src/org/accessible-nodes.ts";
import { selectEffectiveCapabilities, selectExplanation } from "../../src/org/explanations.ts";
import { selectUsersByCapability, selectUsersByScope } from "../../src/org/users-with-access.ts";
import { selectVisibilities } from "../../src/org/visibility-checks.ts";
import { detached } from "../../src/rpc/call.ts";
import { openFor } from "../support/open-database.ts";
import { type OrgWorld, plantWorld } from "../support/org-world.ts";
import { expectRefusal } from "../support/refusals.ts";
import { launchService, startService, transports } from "../support/service.ts";

/** A user with one capability, and the sight of what is there, on a root above a node. */
const simpleWorld = () => {
  const [tenantId, userId, root, nodeId, roleId, capabilityId] = Array.from({ length: 6 }, () => randomUUID());
  const capability = `key.k${capabilityId!.replaceAll("-", "")}`;
  const held = { tenantId: tenantId!, userId: userId!, nodeId: root!, start: -60, end: null };
  const world: OrgWorld = {
    tenants: [{ id: tenantId!, active: true }],
    users: [{ id: userId!, tenantId: tenantId!, active: true }],
    nodes: [
      { id: root!, tenantId: tenantId!, parentId: null, active: true },
      { id: nodeId!, tenantId: tenantId!, parentId: root!, active: true },
    ],
    capabilities: [{ id: capabilityId!, key: capability }],
    roles: [{ id: roleId!, tenantId: tenantId!, capabilityIds: [capabilityId!] }],
    assignments: [{ ...held, id: randomUUID(), roleId: roleId! }],
    grants: [{ ...held, id: randomUUID(), scope: "read" }],
  };
  return { world, root: root!, check: { tenantId: tenantId!, userId: userId!, nodeId: nodeId!, capability } };
};

describe.each(transports)("access over %s", (transport) => {
  test("a check and its explanation say the first reason that applies, and are never not found", async () => {
    const { org, pool } = await startService(transport);
    const { world, check, root } = simpleWorld();
    await plantWorld(pool, world);
    const { tenantId, userId } = check;
    const answers = async (request: object, reason: DecisionReason) => {
      const decision = { allowed: reason === DecisionReason.GRANTED, reason };
      expect(await org.checkAccess({ ...check, ...request })).toMatchObject(decision);
      expect(await org.explainAccess({ ...check, ...request })).toMatchObject(decision);
    };
    const nothing = { userId: randomUUID(), nodeId: randomUUID(), capability: "none" };
    await answers({}, DecisionReason.GRANTED);
    await answers({ ...nothing, tenantId: randomUUID() }, DecisionReason.UNKNOWN_TENANT);
    await answers(nothing, DecisionReason.UNKNOWN_USER);
    await answers({ ...nothing, userId }, DecisionReason.UNKNOWN_NODE);
    await answers({ capability: "none" }, DecisionReason.UNKNOWN_CAPABILITY);
    await org.deactivateNode({ tenantId, nodeId: root });
    await answers({ capability: "none" }, DecisionReason.NODE_INACTIVE);
    await pool.query(sql.unsafe`UPDATE users SET user_state_code = 'inactive' WHERE user_id = ${userId}::uuid`);
    await answers({ nodeId: randomUUID() }, DecisionReason.USER_INACTIVE);
    await org.suspendTenant({ tenantId });
    await answers(nothing, DecisionReason.TENANT_SUSPENDED);
  });

  test("a malformed check is refused with its field", async () => {
    const { org } = await startService(transport);
    const { check } = simpleWorld();
    const fields = async (call: Promise<unknown>) => (await expectRefusal(call, "INVALID_REQUEST")).fields;
    expect(await fields(org.checkAccess({ ...check, userId: "ann" }))).toEqual(["user_id"]);
    expect(await fields(org.checkAccess({ ...check, capability: "A" }))).toEqual(["capability"]);
    expect(await fields(org.checkVisibility({ ...check, scope: 0 }))).toEqual(["scope"]);
    const checks = Array.from({ length: 1_001 }, () => check);
    expect(await fields(org.batchCheckAccess({ tenantId: check.tenantId, checks }))).toEqual(["checks"]);
  });

  test("a check sees what was answered before it, however many checks are under way, on each replica", async () => {
    const server = await startService(transport);
    const replica = await launchService(transport, { databaseUrl: server.databaseUrl });
    const replicas = [server.org, replica.as(server.rootToken).org];
    const { world, check, root } = simpleWorld();
    await plantWorld(server.pool, world);
    const sight = { ...check, scope: AccessScope.READ };
    const reasons = async () => {
      const checks = replicas.flatMap((org) => [org.checkAccess(check), org.checkVisibility(sight)]);
      return new Set((await Promise.all(checks)).map(({ reason }) => reason));
    };
    const ended = new AbortController();
    const load = replicas.flatMap((org) =>
      Array.from({ length: 2 }, async () => {
        while (!ended.signal.aborted) await Promise.all([org.checkAccess(check), org.checkVisibility(sight)]);
      }),
    );
    const node = { tenantId: check.tenantId, nodeId: root };
    for (let round = 0; round < 4; round++) {
      await server.org.deactivateNode(node);
      expect(await reasons()).toEqual(new Set([DecisionReason.NODE_INACTIVE]));
      await server.org.activateNode(node);
      expect(await reasons()).toEqual(new Set([DecisionReason.GRANTED]));
    }
    ended.abort();
    await Promise.all(load);
    await replica.stop();
  });

  test("who cancels his check ends nobody else's", async () => {
    const { org, pool } = await startService(transport);
    const { world, check } = simpleWorld();
    await plantWorld(pool, world);
    const controller = new AbortController();
    const cancelled = Array.from({ length: 40 }, () => org.checkAccess(check, { signal: controller.signal }));
    const others = Array.from({ length: 40 }, () => org.checkAccess(check));
    setImmediate(() => controller.abort());
    const [, kept] = await Promise.all([Promise.allSettled(cancelled), Promise.all(others)]);
    expect(kept.every(({ allowed }) => allowed)).toBe(true);
  });
});

test.each([15, 16, 17, 40])("what a user holds beside %i others decides, first or last among them", async (others) => {
  const { org, pool } = await startService("grpc");
  const { world, check, root } = simpleWorld();
  const places = Array.from({ length: others }, () => randomUUID());
  const nowhere = randomUUID();
  const rootOf = (id: string) => ({ id, tenantId: check.tenantId, parentId: null, active: true });
  const [assignment, grant] = [world.assignments[0]!, world.grants[0]!];
  await plantWorld(pool, {
    ...world,
    nodes: [...world.nodes, ...[...places, nowhere].map(rootOf)],
    assignments: [assignment, ...places.map((nodeId) => ({ ...assignment, id: randomUUID(), nodeId }))],
    grants: [grant, ...places.map((nodeId) => ({ ...grant, id: randomUUID(), nodeId }))],
  });
  const [least, ...rest] = [root, ...places].sort();
  for (const [nodeId, allowed] of [
    [least, true],
    [rest.at(-1), true],
    [check.nodeId, true],
    [nowhere, false],
  ] as const) {
    expect(await org.checkAccess({ ...check, nodeId: nodeId! })).toMatchObject({ allowed });
    expect(await org.checkVisibility({ ...check, nodeId: nodeId!, scope: AccessScope.READ })).toMatchObject({
      allowed,
    });
  }
});

test.each([
  ["has not begun", { start: 3_600 }],
  ["has ended", { end: -30 }],
  ["gives something else", {}],
])("of what a user holds beside 40 others nothing decides that %s", async (_, window) => {
  const { org, pool } = await startService("grpc");
  const { world, check } = simpleWorld();
  const [other, roleId] = [randomUUID(), randomUUID()];
  const places = Array.from({ length: 40 }, () => randomUUID());
  const [assignment, grant] = [world.assignments[0]!, world.grants[0]!];
  const { tenantId } = check;
  const isOther = Object.keys(window).length === 0;
  await plantWorld(pool, {
    ...world,
    nodes: [...world.nodes, ...places.map((id) => ({ id, tenantId, parentId: null, active: true }))],
    capabilities: [...world.capabilities, { id: other, key: `other.k${other.replaceAll("-", "")}` }],
    roles: [...world.roles, { id: roleId, tenantId, capabilityIds: [other] }],
    assignments: [
      { ...assignment, ...window, ...(isOther && { roleId }) },
      ...places.map((nodeId) => ({ ...assignment, id: randomUUID(), nodeId })),
    ],
    grants: [{ ...grant, ...window }, ...places.map((nodeId) => ({ ...grant, id: randomUUID(), nodeId }))],
  });
  const no = { allowed: false, reason: DecisionReason.NO_GRANT };
  expect(await org.checkAccess(check)).toMatchObject(no);
  const scope = isOther ? AccessScope.ANALYZE : AccessScope.READ;
  expect(await org.checkVisibility({ ...check, scope })).toMatchObject(no);
});

// now() is that of the transaction, so the edges of the rows stand exactly on it.
test.each([
  ["from its start on", "0", null, true],
  ["not a microsecond before it", "1 microsecond", null, false],
  ["to the microsecond before its end", "-1 hour", "1 microsecond", true],
  ["not at its end", "-1 hour", "0", false],
])("a window counts %s, by every decision and list", async (_, start, end, counts) => {
  const server = await startService("grpc");
  const { world, check } = simpleWorld();
  await plantWorld(server.pool, world);
  const { tenantId, userId, nodeId, capability } = check;
  const by = { tenantId, from: leastAfter(undefined), limit: 2 };
  const found = await transact(openFor(server.databaseUrl), detached(), async (tx) => {
    for (const table of ["org_assignments", "visibility_grants"]) {
      await tx.query(sql.unsafe`
        UPDATE ${sql.identifier([table])}
        SET start_utc = now() + ${start}::interval, end_utc = now() + ${end}::interval
        WHERE tenant_id = ${tenantId}::uuid`);
    }
    return {
      access: (await tx.one(selectDecisions([check]))).codes,
      visibility: (await tx.one(selectVisibilities([{ ...check, scope: "read" }]))).codes,
      explained: (await tx.one(selectExplanation(check))).held.map((held) => held.time_code === "NOW"),
      capabilities: (await tx.any(selectEffectiveCapabilities(tenantId, userId, nodeId))).length,
      nodes: (await tx.any(selectNodesByCapability({ ...by, userId, access: capability }))).length,
      seen: (await tx.any(selectNodesByScope({ ...by, userId, access: "read" }))).length,
      users: (await tx.any(selectUsersByCapability({ ...by, nodeId, access: capability }))).map(({ via_id }) => via_id),
      viewers: (await tx.any(selectUsersByScope({ ...by, nodeId, access: "read" }))).map(({ via_id }) => via_id),
    };
  });
  const code = counts ? "GRANTED" : "NO_GRANT";
  const [{ id: assignmentId } = { id: "" }] = world.assignments;
  const [{ id: grantId } = { id: "" }] = world.grants;
  expect(found).toEqual({
    access: [code],
    visibility: [code],
    explained: [counts],
    capabilities: counts ? 1 : 0,
    nodes: counts ? 2 : 1,
    seen: counts ? 2 : 1,
    users: [counts ? assignmentId : null],
    viewers: [counts ? grantId : null],
  });
});
