import type { DecisionCode } from "../../src/org/decisions.ts";
import { type OrgWorld, type PlantedWindow, lineOf } from "./org-world.ts";

export type Access = { readonly capability: string } | { readonly scope: "read" | "analyze" };

const counts = ({ start, end, cancelled = false }: PlantedWindow) =>
  !cancelled && start <= 0 && (end === null || end > 0);

/** What api.md says a decision means, in plain code over the rows of a world. */
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

  return { decide, giving };
};
