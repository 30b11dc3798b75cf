import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { z } from "zod";
import type { Node } from "../../src/gen/org/v1/org_pb.ts";
import type { TestService } from "./service.ts";
import { plantUnchecked } from "./admin.ts";

type Server = Pick<TestService, "org" | "pool">;

/** Creates a node by the API, a root where no parent is named. */
export const addNode = async ({ org }: Server, tenantId: string, parentNodeId?: string): Promise<Node> => {
  const { node } = await org.createNode({ tenantId, nodeType: "place", label: "Place", ...parentOf(parentNodeId) });
  return node!;
};

const parentOf = (parentNodeId: string | undefined) => (parentNodeId === undefined ? {} : { parentNodeId });

/** Creates nodes one below the other; answers with their ids, the topmost first. */
export const addChain = async ({ org }: Server, tenantId: string, length: number, under?: string, label = "Place") => {
  const nodeIds = Array.from({ length }, () => randomUUID());
  await org.batchCreateNodes({
    tenantId,
    nodes: nodeIds.map((nodeId, index) => ({
      nodeId,
      nodeType: "place",
      label,
      ...parentOf(index === 0 ? under : nodeIds[index - 1]),
    })),
  });
  return nodeIds;
};

/** Puts nodes that stand below none into the database, without their paths; answers with their ids. */
export const plantRoots = async ({ pool }: Pick<Server, "pool">, tenantId: string, count: number) => {
  const ids = Array.from({ length: count }, () => randomUUID());
  await pool.query(sql.unsafe`
    INSERT INTO org_nodes (org_node_id, tenant_id, node_type_code, node_label)
    SELECT n.id, ${tenantId}::uuid, 'shop', 'Shop' FROM unnest(${sql.array(ids, "uuid")}) AS n (id)`);
  return ids;
};

/** Puts `count` nodes below a node, ten below each, past the API and past the foreign keys, which take most of the time. */
export const plantSubtree = (server: Server, tenantId: string, rootId: string, count: number) =>
  plantUnchecked(server, async (tx) => {
    await tx.query(sql.unsafe`
      INSERT INTO org_nodes (org_node_id, tenant_id, node_type_code, node_label, parent_org_node_id)
      SELECT md5(${rootId} || n)::uuid, ${tenantId}::uuid, 'place', 'Place',
        CASE WHEN n <= 10 THEN ${rootId}::uuid ELSE md5(${rootId} || ((n - 1) / 10))::uuid END
      FROM generate_series(1, ${count}::int) n`);
    await tx.query(sql.unsafe`
      WITH RECURSIVE below AS (
        SELECT n AS number, n AS above, 0 AS depth_val FROM generate_series(1, ${count}::int) n
        UNION ALL
        SELECT b.number, (b.above - 1) / 10, b.depth_val + 1 FROM below b WHERE b.above > 10
      )
      INSERT INTO org_node_paths (tenant_id, ancestor_org_node_id, descendant_org_node_id, depth_val)
      SELECT ${tenantId}::uuid, md5(${rootId} || b.above)::uuid, md5(${rootId} || b.number)::uuid, b.depth_val FROM below b
      UNION ALL
      SELECT ${tenantId}::uuid, p.ancestor_org_node_id, md5(${rootId} || b.number)::uuid, b.depth_val + 1 + p.depth_val
      FROM below b CROSS JOIN org_node_paths p
      WHERE b.above <= 10 AND p.descendant_org_node_id = ${rootId}::uuid`);
  });

const differenceRow = z.object({ what: z.string(), ancestor: z.string(), descendant: z.string(), depth: z.number() });

/** How the closure table differs from the recursive tree of a tenant's nodes: not at all, one hopes. */
export const pathDifferences = ({ pool }: Server, tenantId: string) =>
  pool.any(sql.type(differenceRow)`
    WITH RECURSIVE tree (ancestor, descendant, depth) AS (
      SELECT n.org_node_id, n.org_node_id, 0 FROM org_nodes n WHERE n.tenant_id = ${tenantId}::uuid
      UNION ALL
      SELECT n.parent_org_node_id, t.descendant, t.depth + 1
      FROM tree t JOIN org_nodes n ON n.org_node_id = t.ancestor
      WHERE n.parent_org_node_id IS NOT NULL AND t.depth < 2000
    ), closure (ancestor, descendant, depth) AS (
      SELECT p.ancestor_org_node_id, p.descendant_org_node_id, p.depth_val
      FROM org_node_paths p WHERE p.tenant_id = ${tenantId}::uuid
    )
    SELECT 'missing' AS what, d.* FROM (TABLE tree EXCEPT ALL TABLE closure) d
    UNION ALL
    SELECT 'too many', d.* FROM (TABLE closure EXCEPT ALL TABLE tree) d
    LIMIT 10`);

const eventRow = z.object({ action_key: z.string(), payload: z.record(z.string(), z.unknown()) });

/** The events of an entity, oldest first, without their request's id. */
export const eventsOf = ({ pool }: Server, entityId: string) =>
  pool.any(sql.type(eventRow)`
    SELECT e.action_key, e.payload_json - 'request_id' AS payload
    FROM audit_events e WHERE e.entity_id = ${entityId}::uuid ORDER BY e.occurred_utc, e.audit_id`);
