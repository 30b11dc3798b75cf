import { NearMissReason } from "../../src/gen/org/v1/org_pb.ts";
import type { DecisionCode } from "../../src/org/decisions.ts";
import { type OrgWorld, type PlantedWindow, lineOf } from "./org-world.ts";

export type Access = { readonly capability: string } | { readonly scope: "read" | "analyze" };

const counts = ({ start, end, cancelled = false }: PlantedWindow) =>
  !cancelled && start <= 0 && (end === null || end > 0);

/** From the node at this distance down to the one that the line is of. */
const lineIds = (line: OrgWorld["nodes"], distance: number) =>
  line
    .slice(0, distance + 1)
    .map(({ id }) => id)
    .reverse();

/** What org.proto says a decision means, in plain code over the rows of a world. */
export const createOracle = (world: OrgWorld) => {
  const nodes = new Map(world.nodes.map((node) => [node.id, node]));

  /** The assignments or grants that count now and give what is asked about, at the node or above it. */
  const giving = (userId: string, nodeId: string, access: Access): readonly { readonly id: string }[] => {
    const line = new Set(lineOf(nodes, nodeId).map(({ id }) => id));
    const there = (held: PlantedWindow & { userId: string; nodeId: string }) =>
      held.userId === userId && line.has(held.nodeId) && counts(held);
    if ("scope" in access) {
      return world.grants.filter((grant) => there(grant) && (grant.scope === "analyze" || access.scope === "read"));
    }
    const capability = world.capabilities.find(({ key }) => key === access.capability);
    const roles = world.roles.filter(({ capabilityIds }) => capability && capabilityIds.includes(capability.id));
    return world.assignments.filter((held) => there(held) && roles.some(({ id }) => id === held.roleId));
  };

  const decide = (tenantId: string, userId: string, nodeId: string, access: Access): DecisionCode => {
    const tenant = world.tenants.find(({ id }) => id === tenantId);
    if (!tenant) return "UNKNOWN_TENANT";
    if (!tenant.active) return "TENANT_SUSPENDED";
    const user = world.users.find((one) => one.id === userId && one.tenantId === tenantId);
    if (!user) return "UNKNOWN_USER";
    if (!user.active) return "USER_INACTIVE";
    if (nodes.get(nodeId)?.tenantId !== tenantId) return "UNKNOWN_NODE";
    if (lineOf(nodes, nodeId).some(({ active }) => !active)) return "NODE_INACTIVE";
    const isKnown = "scope" in access || world.capabilities.some(({ key }) => key === access.capability);
    if (!isKnown) return "UNKNOWN_CAPABILITY";
    return giving(userId, nodeId, access).length > 0 ? "GRANTED" : "NO_GRANT";
  };

  /** Why an assignment on the line does not give a capability; undefined where nothing but its tenant or user is in the way. */
  const whyNot = (held: OrgWorld["assignments"][number], capability: string, isClosed: boolean) => {
    const role = world.roles.find(({ id }) => id === held.roleId);
    const asked = world.capabilities.find(({ key }) => key === capability);
    if (held.cancelled) return NearMissReason.CANCELLED;
    if (held.start > 0) return NearMissReason.NOT_YET;
    if (held.end !== null && held.end <= 0) return NearMissReason.ENDED;
    if (!asked || !role?.capabilityIds.includes(asked.id)) return NearMissReason.CAPABILITY_MISSING;
    return isClosed ? NearMissReason.NODE_INACTIVE : undefined;
  };

  /** What a user has at a node or above it, the nearest first: what grants, with the nodes between, and what does not. */
  const explain = (tenantId: string, userId: string, nodeId: string, capability: string) => {
    const decision = decide(tenantId, userId, nodeId, { capability });
    const isKnown = !["UNKNOWN_TENANT", "UNKNOWN_USER", "UNKNOWN_NODE"].includes(decision);
    const line = nodes.get(nodeId)?.tenantId === tenantId && isKnown ? lineOf(nodes, nodeId) : [];
    const isClosed = line.some(({ active }) => !active);
    const there = line.flatMap(({ id }, distance) =>
      world.assignments
        .filter((held) => held.userId === userId && held.nodeId === id)
        .sort((a, b) => (a.id < b.id ? -1 : 1))
        .map((held) => ({ id: held.id, path: lineIds(line, distance), why: whyNot(held, capability, isClosed) })),
    );
    return {
      grants: decision === "GRANTED" ? there.filter(({ why }) => why === undefined) : [],
      nearMisses: there.filter(({ why }) => why !== undefined),
    };
  };

  return { decide, explain, giving };
};
