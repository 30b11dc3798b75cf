import { randomUUID } from "node:crypto";
import { type Stage, mutationOf } from "./mutations.ts";
import { addChain, addNode } from "./trees.ts";

const row = mutationOf<Stage>();

const ofTenant = (action: string, tenantId: string, payload = {}) => ({
  action,
  entityKind: "tenant",
  entityId: tenantId,
  tenantId,
  payload,
});

const ofNode = (action: string, nodeId: string, payload = {}) => ({
  action,
  entityKind: "node",
  entityId: nodeId,
  payload,
});

const plantNode = async ({ server, tenantId }: Stage) => ({
  tenantId,
  nodeId: (await addNode(server, tenantId)).nodeId,
});

const place = (parentNodeId?: string) => ({
  nodeId: randomUUID(),
  nodeType: "place",
  label: "Place",
  ...(parentNodeId !== undefined && { parentNodeId }),
});

export const tenantMutations = [
  row({
    rpc: "CreateTenant",
    before: async () => randomUUID(),
    call: ({ server }, tenantId) => server.org.createTenant({ tenantId, label: "Created" }),
    events: (_, tenantId) => [ofTenant("org.tenant.create", tenantId)],
  }),
  row({
    rpc: "UpdateTenant",
    call: ({ server, tenantId }) => server.org.updateTenant({ tenantId, label: "Renamed" }),
    events: ({ tenantId }) => [ofTenant("org.tenant.update", tenantId, { fields: ["label"] })],
  }),
  row({
    rpc: "SuspendTenant",
    call: ({ server, tenantId }) => server.org.suspendTenant({ tenantId }),
    events: ({ tenantId }) => [ofTenant("org.tenant.suspend", tenantId)],
  }),
  row({
    rpc: "ActivateTenant",
    before: ({ server, tenantId }) => server.org.suspendTenant({ tenantId }),
    call: ({ server, tenantId }) => server.org.activateTenant({ tenantId }),
    events: ({ tenantId }) => [ofTenant("org.tenant.activate", tenantId)],
  }),
];

export const nodeMutations = [
  row({
    rpc: "CreateNode",
    what: "as a root",
    before: async () => place(),
    call: ({ server, tenantId }, node) => server.org.createNode({ tenantId, ...node }),
    events: (_, { nodeId }) => [ofNode("org.node.create", nodeId, { node_type: "place" })],
  }),
  row({
    rpc: "CreateNode",
    what: "below another",
    before: async (stage) => place((await plantNode(stage)).nodeId),
    call: ({ server, tenantId }, node) => server.org.createNode({ tenantId, ...node }),
    events: (_, { nodeId, parentNodeId }) => [
      ofNode("org.node.create", nodeId, { node_type: "place", parent_node_id: parentNodeId }),
    ],
  }),
  row({
    rpc: "BatchCreateNodes",
    before: async ({ server, tenantId }) => {
      const root = place();
      await server.org.createNode({ tenantId, ...root });
      return [root, ...Array.from({ length: 20 }, () => place(root.nodeId))];
    },
    call: ({ server, tenantId }, nodes) => server.org.batchCreateNodes({ tenantId, nodes }),
    // The root was there before.
    events: (_, [root, ...others]) =>
      others.map(({ nodeId }) =>
        ofNode("org.node.create", nodeId, { node_type: "place", parent_node_id: root!.nodeId }),
      ),
  }),
  row({
    rpc: "UpdateNode",
    before: plantNode,
    call: ({ server }, node) => server.org.updateNode({ ...node, label: "Renamed", nodeType: "shop" }),
    events: (_, { nodeId }) => [ofNode("org.node.update", nodeId, { fields: ["label", "node_type"] })],
  }),
  row({
    rpc: "DeleteNode",
    before: plantNode,
    call: ({ server }, node) => server.org.deleteNode(node),
    events: (_, { nodeId }) => [ofNode("org.node.delete", nodeId)],
    refusesRepeats: true,
  }),
  row({
    rpc: "MoveNode",
    what: "to another parent",
    before: async ({ server, tenantId }) => {
      const [from = "", nodeId = ""] = await addChain(server, tenantId, 3);
      return { nodeId, from, to: (await addNode(server, tenantId)).nodeId };
    },
    call: ({ server, tenantId }, { nodeId, to }) => server.org.moveNode({ tenantId, nodeId, newParentNodeId: to }),
    events: (_, { nodeId, from, to }) => [
      ofNode("org.node.move", nodeId, { former_parent_node_id: from, parent_node_id: to }),
    ],
  }),
  row({
    rpc: "MoveNode",
    what: "to be a root",
    before: ({ server, tenantId }) => addChain(server, tenantId, 3),
    call: ({ server, tenantId }, [, nodeId = ""]) => server.org.moveNode({ tenantId, nodeId }),
    events: (_, [from, nodeId = ""]) => [ofNode("org.node.move", nodeId, { former_parent_node_id: from })],
  }),
  row({
    rpc: "DeactivateNode",
    before: plantNode,
    call: ({ server }, node) => server.org.deactivateNode(node),
    events: (_, { nodeId }) => [ofNode("org.node.deactivate", nodeId)],
  }),
  row({
    rpc: "ActivateNode",
    before: async (stage) => {
      const node = await plantNode(stage);
      await stage.server.org.deactivateNode(node);
      return node;
    },
    call: ({ server }, node) => server.org.activateNode(node),
    events: (_, { nodeId }) => [ofNode("org.node.activate", nodeId)],
  }),
];
