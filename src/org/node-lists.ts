import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { ListChildrenRequestSchema, ListDescendantsRequestSchema, type OrgService } from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { cutPage, readPage } from "../rpc/page.ts";
import { nodeMessage, nodeNotFound, nodeRow } from "./nodes.ts";
import type { OrgParts } from "./parts.ts";

const INT32_MAX = 2 ** 31 - 1;

/** A depth below the node that was asked about, then an id. */
const descendantKey = z.tuple([z.int().min(0).max(INT32_MAX), z.guid()]);

export const selectChildren = (tenantId: string, parentId: string, after: string | null, limit: number) =>
  sql.type(nodeRow)`
  SELECT n.org_node_id, n.tenant_id, n.node_type_code, n.node_label, n.parent_org_node_id, n.active_flag, n.created_utc,
    coalesce((SELECT max(p.depth_val) FROM org_node_paths p WHERE p.descendant_org_node_id = ${parentId}::uuid) + 1, 0)
      AS depth_val
  FROM org_nodes n
  WHERE n.tenant_id = ${tenantId}::uuid AND n.parent_org_node_id = ${parentId}::uuid
    AND (${after}::uuid IS NULL OR n.org_node_id > ${after}::uuid)
  ORDER BY n.org_node_id
  LIMIT ${limit}`;

// Apart from the children: IS NOT DISTINCT FROM is answered by no index. The order by a null is for the planner, which
// would else look for roots among all nodes of the tenant.
export const selectRoots = (tenantId: string, after: string | null, limit: number) => sql.type(nodeRow)`
  SELECT n.org_node_id, n.tenant_id, n.node_type_code, n.node_label, n.parent_org_node_id, n.active_flag, n.created_utc,
    0 AS depth_val
  FROM org_nodes n
  WHERE n.tenant_id = ${tenantId}::uuid AND n.parent_org_node_id IS NULL
    AND (${after}::uuid IS NULL OR n.org_node_id > ${after}::uuid)
  ORDER BY n.parent_org_node_id, n.org_node_id
  LIMIT ${limit}`;

/** The node itself comes last; without it there is none. */
export const selectAncestors = (tenantId: string, nodeId: string) => sql.type(nodeRow)`
  SELECT n.org_node_id, n.tenant_id, n.node_type_code, n.node_label, n.parent_org_node_id, n.active_flag, n.created_utc,
    max(p.depth_val) OVER () - p.depth_val AS depth_val
  FROM org_node_paths p
  CROSS JOIN LATERAL (
    SELECT a.org_node_id, a.tenant_id, a.node_type_code, a.node_label, a.parent_org_node_id, a.active_flag, a.created_utc
    FROM org_nodes a WHERE a.org_node_id = p.ancestor_org_node_id AND a.tenant_id = ${tenantId}::uuid
    OFFSET 0
  ) n
  WHERE p.descendant_org_node_id = ${nodeId}::uuid
  ORDER BY p.depth_val DESC`;

interface Below {
  readonly tenantId: string;
  readonly nodeId: string;
  readonly maxDepth: number;
}

export const selectDescendants = (
  { tenantId, nodeId, maxDepth }: Below,
  [depth, after]: readonly [number, string],
  limit: number,
) => sql.type(nodeRow)`
  SELECT n.org_node_id, n.tenant_id, n.node_type_code, n.node_label, n.parent_org_node_id, n.active_flag, n.created_utc,
    p.depth_val
  FROM org_node_paths p
  JOIN org_nodes n ON n.org_node_id = p.descendant_org_node_id
  WHERE p.ancestor_org_node_id = ${nodeId}::uuid AND n.tenant_id = ${tenantId}::uuid
    AND (p.depth_val, p.descendant_org_node_id) > (${depth}::int, ${after}::uuid) AND p.depth_val <= ${maxDepth}::int
  ORDER BY p.depth_val, p.descendant_org_node_id
  LIMIT ${limit}`;

export const nodeListHandlers = ({ db }: OrgParts) =>
  ({
    async listChildren(request, call) {
      const { tenantId, parentNodeId } = request;
      const page = readPage(ListChildrenRequestSchema, request, z.guid());
      const after = page.after ?? null;
      const list =
        parentNodeId === undefined
          ? selectRoots(tenantId, after, page.size + 1)
          : selectChildren(tenantId, parentNodeId, after, page.size + 1);
      const found = await read(db, call, (connection) => connection.any(list));
      const { rows, nextPageToken } = cutPage(page, found, (row) => row.org_node_id);
      return { nodes: rows.map(nodeMessage), nextPageToken };
    },

    async listAncestors({ tenantId, nodeId }, call) {
      const rows = await read(db, call, (connection) => connection.any(selectAncestors(tenantId, nodeId)));
      if (rows.length === 0) throw nodeNotFound(nodeId);
      return { nodes: rows.slice(0, -1).map(nodeMessage) };
    },

    async listDescendants(request, call) {
      const { tenantId, nodeId, maxDepth = INT32_MAX } = request;
      const page = readPage(ListDescendantsRequestSchema, request, descendantKey);
      // The node itself is the first in this order: a list begins after it.
      const list = selectDescendants({ tenantId, nodeId, maxDepth }, page.after ?? [0, nodeId], page.size + 1);
      const found = await read(db, call, (connection) => connection.any(list));
      const { rows, nextPageToken } = cutPage(page, found, (row): [number, string] => [row.depth_val, row.org_node_id]);
      return { nodes: rows.map(nodeMessage), nextPageToken };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
