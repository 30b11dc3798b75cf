import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { recordEvents } from "../audit/record.ts";
import { column } from "../db/columns.ts";
import type { Tx } from "../db/transact.ts";
import type { OrgService } from "../gen/org/v1/org_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { type FieldViolation, Refusal, invalid, refusal } from "../rpc/refusal.ts";
import { type NodeRow, nodeEvent, nodeMessage, nodeNotFound, nodeRow, selectNodes } from "./nodes.ts";
import type { OrgParts } from "./parts.ts";
import { tenantNotFound } from "./tenants.ts";
import type { TreeWriter } from "./tree.ts";

/** A node to create. */
interface NewNode {
  readonly nodeId: string;
  readonly nodeType: string;
  readonly label: string;
  readonly parentNodeId?: string | undefined;
}

/** One that is known to get this depth. */
interface PlacedNode extends NewNode {
  readonly depth: number;
}

/** Nodes to create in one tenant, ids as the database writes them. */
interface Batch {
  readonly tenantId: string;
  readonly nodes: readonly NewNode[];
  readonly depthMax: number;
}

const asWritten = ({ nodeId, nodeType, label, parentNodeId }: NewNode): NewNode => ({
  nodeId: nodeId.toLowerCase(),
  nodeType,
  label,
  parentNodeId: parentNodeId?.toLowerCase(),
});

const byId = (rows: readonly NodeRow[]): ReadonlyMap<string, NodeRow> =>
  new Map(rows.map((row) => [row.org_node_id, row]));

const insertNodes = (tenantId: string, nodes: readonly PlacedNode[]) => {
  const nodeIds = sql.array(column(nodes, "nodeId"), "uuid");
  const parentIds = sql.array(
    nodes.map(({ parentNodeId }) => parentNodeId ?? null),
    "uuid",
  );
  const types = sql.array(column(nodes, "nodeType"), "text");
  const labels = sql.array(column(nodes, "label"), "text");
  const depths = sql.array(column(nodes, "depth"), "int4");
  // Each node's ancestors: within the batch by its parents, and from the topmost one up by the paths that stand already. Those
  // are read by LATERAL, since a planner without fresh statistics would join with all paths of all tenants; and of the topmost
  // alone, since no statement sees the paths that it writes itself. A node whose id another tenant's writer has taken meanwhile
  // is left out, which whoever counts the rows finds.
  return sql.prepared("insert-nodes", nodeRow)`
  WITH RECURSIVE batch AS MATERIALIZED (
    SELECT b.node_id, b.parent_id, b.node_type, b.node_label, b.depth_val
    FROM unnest(${nodeIds}, ${parentIds}, ${types}, ${labels}, ${depths})
      AS b (node_id, parent_id, node_type, node_label, depth_val)
  ), node AS (
    INSERT INTO org_nodes (org_node_id, tenant_id, node_type_code, node_label, parent_org_node_id)
    SELECT b.node_id, ${tenantId}::uuid, b.node_type, b.node_label, b.parent_id FROM batch b
    ON CONFLICT (org_node_id) DO NOTHING
    RETURNING org_node_id, tenant_id, node_type_code, node_label, parent_org_node_id, active_flag, created_utc
  ), up AS (
    SELECT b.node_id, b.node_id AS ancestor_id, b.parent_id, 0 AS distance FROM batch b
    UNION ALL
    SELECT u.node_id, b.node_id, b.parent_id, u.distance + 1 FROM up u JOIN batch b ON b.node_id = u.parent_id
  ), path AS (
    INSERT INTO org_node_paths (tenant_id, ancestor_org_node_id, descendant_org_node_id, depth_val)
    SELECT ${tenantId}::uuid, u.ancestor_id, u.node_id, u.distance FROM up u
    UNION ALL
    SELECT ${tenantId}::uuid, above.ancestor_org_node_id, u.node_id, u.distance + 1 + above.depth_val
    FROM up u CROSS JOIN LATERAL (
      SELECT p.ancestor_org_node_id, p.depth_val FROM org_node_paths p WHERE p.descendant_org_node_id = u.parent_id OFFSET 0
    ) above
    WHERE u.parent_id NOT IN (SELECT b.node_id FROM batch b)
    ON CONFLICT DO NOTHING
  )
  SELECT n.org_node_id, n.tenant_id, n.node_type_code, n.node_label, n.parent_org_node_id, n.active_flag, n.created_utc,
    b.depth_val
  FROM node n JOIN batch b ON b.node_id = n.org_node_id`;
};

const idTaken = (nodeId: string) => refusal("NODE_ID_TAKEN", { node_id: nodeId });

/** Each node's row, where it is present, is the one that is asked for. */
const isSame = (row: NodeRow, tenantId: string, node: NewNode) =>
  row.tenant_id === tenantId &&
  row.node_type_code === node.nodeType &&
  row.node_label === node.label &&
  (node.parentNodeId === undefined || row.parent_org_node_id === node.parentNodeId);

/** The nodes that are not there yet, each with its depth. */
const placeNodes = (
  tenantId: string,
  nodes: readonly NewNode[],
  present: ReadonlyMap<string, NodeRow>,
  depthMax: number,
): readonly PlacedNode[] | Refusal => {
  const own = [...present.values()].filter((row) => row.tenant_id === tenantId);
  const depths = new Map(own.map((row) => [row.org_node_id, row.depth_val]));
  const placed: PlacedNode[] = [];
  for (const node of nodes) {
    const row = present.get(node.nodeId);
    if (row && !isSame(row, tenantId, node)) return idTaken(node.nodeId);
    if (row) continue;
    const above = node.parentNodeId === undefined ? -1 : depths.get(node.parentNodeId);
    if (above === undefined) return nodeNotFound(node.parentNodeId ?? "");
    if (above + 1 > depthMax) return refusal("NODE_TOO_DEEP", { node_id: node.nodeId });
    depths.set(node.nodeId, above + 1);
    placed.push({ ...node, depth: above + 1 });
  }
  return placed;
};

const creationEvent = (row: NodeRow) => {
  const { tenant_id, org_node_id, parent_org_node_id: parent, node_type_code: node_type } = row;
  const payload = { node_type, ...(parent !== null && { parent_node_id: parent }) };
  return nodeEvent("org.node.create", tenant_id, org_node_id, payload);
};

/** Creates those that are not there, by as many statements whatever their number, and answers with all in their order. */
const createNodes = async (tx: Tx, call: Call, batch: Batch): Promise<readonly NodeRow[] | Refusal> => {
  const { tenantId, nodes, depthMax } = batch;
  const nodeIds = nodes.map(({ nodeId }) => nodeId);
  const mentioned = new Set([...nodeIds, ...nodes.flatMap(({ parentNodeId }) => parentNodeId ?? [])]);
  const present = byId(await tx.any(selectNodes([...mentioned])));
  const placed = placeNodes(tenantId, nodes, present, depthMax);
  if (placed instanceof Refusal) return placed;
  const created = placed.length > 0 ? await tx.any(insertNodes(tenantId, placed)) : [];
  const rows = new Map([...present, ...byId(created)]);
  const missing = nodeIds.find((nodeId) => !rows.has(nodeId));
  // Another tenant's writer had the id first. Thrown, since the others shall not stand either.
  if (missing !== undefined) throw idTaken(missing);
  const rowsOf = (some: readonly NewNode[]) => some.flatMap(({ nodeId }) => rows.get(nodeId) ?? []);
  // In the batch's order: whoever follows the record reads of a parent before its children.
  if (placed.length > 0) await recordEvents(tx, call, rowsOf(placed).map(creationEvent));
  return rowsOf(nodes);
};

/** What in a batch cannot be, whatever the tree is: nobody needs the tree's lock to be told. */
const batchFaults = (nodes: readonly NewNode[]): FieldViolation[] => {
  const places = new Map<string, number>();
  for (const [index, { nodeId }] of nodes.entries()) if (!places.has(nodeId)) places.set(nodeId, index);
  return nodes.flatMap(({ nodeId, parentNodeId }, index) => {
    const isRepeated = places.get(nodeId) !== index;
    const isEarly = parentNodeId !== undefined && (places.get(parentNodeId) ?? -1) >= index;
    return [
      ...(isRepeated ? [{ field: `nodes[${index}].node_id`, description: "stands in the batch before" }] : []),
      ...(isEarly ? [{ field: `nodes[${index}].parent_node_id`, description: "must stand before its children" }] : []),
    ];
  });
};

export const nodeCreationHandlers = ({ config }: OrgParts, writeTree: TreeWriter) => {
  const { depthMax, moveTimeoutMs } = config.tree;
  const create = async (call: Call, named: string, nodes: readonly NewNode[]) => {
    const tenantId = named.toLowerCase();
    // A thousand nodes a hundred deep are as many paths as a large move writes.
    const statementTimeoutMs = nodes.length > 1 ? moveTimeoutMs : undefined;
    const rows = await writeTree({ call, tenantId, unknown: tenantNotFound(tenantId), statementTimeoutMs }, (tx) =>
      createNodes(tx, call, { tenantId, nodes, depthMax }),
    );
    return rows.map(nodeMessage);
  };

  return {
    async createNode({ tenantId, ...node }, call) {
      const [created] = await create(call, tenantId, [asWritten({ ...node, nodeId: node.nodeId ?? uuidv7() })]);
      if (!created) throw new Error("one node was created, and none is answered");
      return { node: created };
    },

    async batchCreateNodes({ tenantId, nodes: sent }, call) {
      const nodes = sent.map(asWritten);
      const faults = batchFaults(nodes);
      if (faults.length > 0) throw invalid(...faults);
      return { nodes: await create(call, tenantId, nodes) };
    },
  } satisfies Partial<Handlers<typeof OrgService>>;
};
