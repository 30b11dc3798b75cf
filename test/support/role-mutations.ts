import { randomUUID } from "node:crypto";
import { type Stage, mutationOf } from "./mutations.ts";
import { addCapabilities, addRole, uniqueCapability, uniqueLabel } from "./roles.ts";

const row = mutationOf<Stage>();

const ofCapability = (action: string, capabilityId: string | undefined, key: string) => ({
  action,
  entityKind: "capability",
  entityId: capabilityId,
  // Capabilities are the same for all tenants.
  tenantId: undefined,
  payload: { key },
});

const ofRole = (action: string, roleId: string, payload: object) => ({
  action,
  entityKind: "role",
  entityId: roleId,
  payload,
});

const changed = (roleId: string, fields: readonly string[], added: readonly string[], removed: readonly string[]) =>
  ofRole("org.role.update", roleId, { fields, added_capability_keys: added, removed_capability_keys: removed });

/** A role with the first two of three capabilities. */
const plantRole = async ({ server, tenantId }: Stage) => {
  const [a = "", b = "", c = ""] = await addCapabilities(server, "a", "b", "c");
  const { roleId } = await addRole(server, { tenantId, capabilityKeys: [b, a] });
  return { role: { tenantId, roleId }, roleId, a, b, c };
};

export const capabilityMutations = [
  row({
    rpc: "CreateCapability",
    before: async () => ({ capabilityId: randomUUID(), key: uniqueCapability() }),
    call: ({ server }, capability) => server.org.createCapability(capability),
    events: (_, { capabilityId, key }) => [ofCapability("org.capability.create", capabilityId, key)],
  }),
  row({
    rpc: "DeleteCapability",
    before: async ({ server }) => (await server.org.createCapability({ key: uniqueCapability() })).capability!,
    call: ({ server }, { key }) => server.org.deleteCapability({ key }),
    events: (_, { capabilityId, key }) => [ofCapability("org.capability.delete", capabilityId, key)],
    refusesRepeats: true,
  }),
];

export const roleMutations = [
  row({
    rpc: "CreateRole",
    before: async ({ server }) => {
      const [a = "", b = ""] = await addCapabilities(server, "a", "b");
      return { roleId: randomUUID(), label: uniqueLabel(), capabilityKeys: [b, a] };
    },
    call: ({ server, tenantId }, role) => server.org.createRole({ tenantId, ...role }),
    events: (_, { roleId, capabilityKeys }) => [
      ofRole("org.role.create", roleId, { capability_keys: capabilityKeys.toSorted() }),
    ],
  }),
  row({
    rpc: "UpdateRole",
    before: plantRole,
    call: ({ server }, { role, b, c }) =>
      server.org.updateRole({
        ...role,
        label: "Renamed",
        capabilityKeys: [c, b],
        updateMask: { paths: ["label", "capability_keys"] },
      }),
    events: (_, { roleId, a, c }) => [changed(roleId, ["label", "capability_keys"], [c], [a])],
  }),
  row({
    rpc: "DeleteRole",
    before: plantRole,
    call: ({ server }, { role }) => server.org.deleteRole(role),
    events: (_, { roleId, a, b }) => [ofRole("org.role.delete", roleId, { capability_keys: [a, b] })],
    refusesRepeats: true,
  }),
  row({
    rpc: "AddRoleCapabilities",
    before: plantRole,
    call: ({ server }, { role, a, c }) => server.org.addRoleCapabilities({ ...role, capabilityKeys: [c, a] }),
    events: (_, { roleId, c }) => [changed(roleId, ["capability_keys"], [c], [])],
  }),
  row({
    rpc: "RemoveRoleCapabilities",
    before: plantRole,
    call: ({ server }, { role, a, c }) => server.org.removeRoleCapabilities({ ...role, capabilityKeys: [c, a] }),
    events: (_, { roleId, a }) => [changed(roleId, ["capability_keys"], [], [a])],
  }),
];
