import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { z } from "zod";
import { type AuditEvent, recordEvent } from "../audit/record.ts";
import { read, transact } from "../db/transact.ts";
import type { NodeSchema, OrgService } from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { refusal } from "../rpc/refusal.ts";
import { maskedFields } from "../rpc/update-mask.ts";
import type { OrgParts } from "./parts.ts";
import type { TreeWriter } from "./tree.ts";

const usedRow = z.object({ used: z.boolean() });

export const nodeRow = z.object({
  org_node_id: z.string(),
  tenant_id: z.string(),
  node_type_code: z.string(),
  node_label: z.string(),
  parent_org_node_id: z.string().nullable(),
  active_flag: z.boolean(),
  created_utc: z.number(),
  depth_val: z.number(),
});
export type NodeRow = z.output<typeof nodeRow>;

const lockedNodeRow = nodeRow.pick({ node_type_code: true, node_label: true, active_flag: true });

/** Nodes of any tenant, with their depth from their root. */
export const selectNodes = (nodeIds: readonly string[]) => sql.prepared("select-nodes", nodeRow)`
  SELECT n.org_node_id, n.tenant_id, n.node_type_code, n.node_label, n.parent_org_node_id, n.active_flag, n.created_utc,
    coalesce((SELECT max(p.depth_val) FROM org_node_paths p WHERE p.descendant_org_node_id = n.org_node_id), 0) AS depth_val
  FROM org_nodes n WHERE n.org_node_id = ANY((SELECT ${sql.array(nodeIds, "uuid")})::uuid[])`;

/** One node, with its depth from its root. */
export const selectNode = (tenantId: string, nodeId: string) => sql.prepared("select-node", nodeRow)`
  SELECT n.org_node_id, n.tenant_id, n.node_type_code, n.node_label, n.parent_org_node_id, n.active_flag, n.created_utc,
    coalesce((SELECT max(p.depth_val) FROM org_node_paths p WHERE p.descendant_org_node_id = n.org_node_id), 0) AS depth_val
  FROM org_nodes n WHERE n.tenant_id = ${tenantId}::uuid AND n.org_node_id = ${nodeId}::uuid`;

/** Locks a node for a change of its own columns: neither the tree's writers nor who names the node wait for it. */
export const lockNode = (tenantId: string, nodeId: string) => sql.type(lockedNodeRow)`
  SELECT n.node_type_code, n.node_label, n.active_flag
  FROM org_nodes n WHERE n.tenant_id = ${tenantId}::uuid AND n.org_node_id = ${nodeId}::uuid
  FOR NO KEY UPDATE`;

export const nodeIdRow = z.object({ org_node_id: z.string() });

const updateNode = (tenantId: string, nodeId: string, label: string, type: string) => sql.type(nodeIdRow)`
  UPDATE org_nodes SET node_label = ${label}, node_type_code = ${type}
  WHERE tenant_id = ${tenantId}::uuid AND org_node_id = ${nodeId}::uuid
  RETURNING org_node_id`;

const lockNodeForDelete = (tenantId: string, nodeId: string) => sql.type(nodeIdRow)`
  SELECT n.org_node_id FROM org_nodes n WHERE n.tenant_id = ${tenantId}::uuid AND n.org_node_id = ${nodeId}::uuid
  FOR UPDATE`;

const selectIsUsed = (tenantId: string, nodeId: string) => sql.type(usedRow)`
  SELECT (EXISTS (SELECT FROM org_nodes n
      WHERE n.tenant_id = ${tenantId}::uuid AND n.parent_org_node_id = ${nodeId}::uuid)
    OR EXISTS (SELECT FROM org_assignments a WHERE a.org_node_id = ${nodeId}::uuid)
    OR EXISTS (SELECT FROM visibility_grants g WHERE g.org_node_id = ${nodeId}::uuid)
    OR EXISTS (SELECT FROM invitations i WHERE i.target_org_node_id = ${nodeId}::uuid)) AS used`;

/** A leaf, with its paths. */
const deleteNode = (tenantId: string, nodeId: string) => sql.type(nodeIdRow)`
  WITH above AS (
    DELETE FROM org_node_paths WHERE descendant_org_node_id = ${nodeId}::uuid
  )
  DELETE FROM org_nodes WHERE tenant_id = ${tenantId}::uuid AND org_node_id = ${nodeId}::uuid
  RETURNING org_node_id`;

export const nodeMessage = (row: NodeRow): MessageInitShape<typeof NodeSchema> => ({
  nodeId: row.org_node_id,
  tenantId: row.tenant_id,
  nodeType: row.node_type_code,
  label: row.node_label,
  ...(row.parent_org_node_id !== null && { parentNodeId: row.parent_org_node_id }),
  active: row.active_flag,
  depth: row.depth_val,
  createTime: timestampFromMs(row.created_utc),
});

export const nodeNotFound = (nodeId: string) => refusal("NODE_NOT_FOUND", { node_id: nodeId });

export const nodeEvent = (action: string, tenantId: string, nodeId: string, payload: AuditEvent["payload"] = {}) =>
  ({ action, tenantId, entityKind: "node", entityId: nodeId, payload }) satisfies AuditEvent;

export const nodeHandlers = ({ db }: OrgParts, writeTree: TreeWriter) =>
  ({
    async getNode({ tenantId, nodeId }, call) {
      const row = await read(db, call, (connection) => connection.maybeOne(selectNode(tenantId, nodeId)));
      if (!row) throw nodeNotFound(nodeId);
      return { node: nodeMessage(row) };
    },

    async updateNode({ tenantId, nodeId, label, nodeType, updateMask }, call) {
      const mask = maskedFields(updateMask, { label, node_type: nodeType }, ["label", "node_type"]);
      const row = await transact(db, call, async (tx) => {
        const before = await tx.maybeOne(lockNode(tenantId, nodeId));
        if (!before) return nodeNotFound(nodeId);
        const after = {
          label: mask.has("label") ? label : before.node_label,
          type: mask.has("node_type") ? nodeType : before.node_type_code,
        };
        const fields = [
          ...(after.label === before.node_label ? [] : ["label"]),
          ...(after.type === before.node_type_code ? [] : ["node_type"]),
        ];
        if (fields.length > 0) {
          await tx.one(updateNode(tenantId, nodeId, after.label, after.type));
          await recordEvent(tx, call, nodeEvent("org.node.update", tenantId, nodeId, { fields }));
        }
        return tx.one(selectNode(tenantId, nodeId));
      });
      return { node: nodeMessage(row) };
    },

    async deleteNode({ tenantId, nodeId }, call) {
      await writeTree({ call, tenantId, unknown: nodeNotFound(nodeId) }, async (tx) => {
        // Whoever names the node holds it by a foreign key's KEY SHARE: wait for them, and only then look for what they wrote.
        if (!(await tx.maybeOne(lockNodeForDelete(tenantId, nodeId)))) return nodeNotFound(nodeId);
        if ((await tx.one(selectIsUsed(tenantId, nodeId))).used) return refusal("NODE_IN_USE", { node_id: nodeId });
        await tx.one(deleteNode(tenantId, nodeId));
        await recordEvent(tx, call, nodeEvent("org.node.delete", tenantId, nodeId));
        return undefined;
      });
      return {};
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
