import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { ListAccessibleNodesRequestSchema, type OrgService } from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readPage } from "../rpc/page.ts";
import { cutStreams, leastAfter } from "./access-pages.ts";
import { type NodeRow, nodeMessage } from "./nodes.ts";
import type { OrgParts } from "./parts.ts";
import { type ScopeCode, scopeCode } from "./visibility-checks.ts";

const foundRow = z.object({
  /** Up to where the page has looked; null where it came to the end. */
  cut_id: z.string().nullable(),
  org_node_id: z.string().nullable(),
  tenant_id: z.string().nullable(),
  node_type_code: z.string().nullable(),
  node_label: z.string().nullable(),
  parent_org_node_id: z.string().nullable(),
  active_flag: z.boolean().nullable(),
  created_utc: z.number().nullable(),
  depth_val: z.number().nullable(),
});

interface Asked<Access> {
  readonly tenantId: string;
  readonly userId: string;
  readonly access: Access;
  /** The first id to look at; null where none is left. */
  readonly from: string | null;
  readonly limit: number;
}

/**
 * Goes one of two ways, so that a page costs the same wherever it starts, whatever the user has and whatever is inactive.
 *
 * Streams: each open node with an assignment gives the nodes below it in the order of their ids, 2,000 rows for one such
 * node and 16 at least for each of many; what all were read up to is the window. Who has few nodes gets them on one page.
 * Where that window ends before the tenant's next 2,000 nodes do, since one stream is long beside many, or where the user
 * has more than 1,000 such nodes or 5,000 assignments, those 2,000 nodes are looked through, each decided as by a check.
 * Of assignments those with a role that has the capability are read: a user may have thousands of others.
 *
 * What a node is comes from the snapshot that found it: by a second statement it might stand elsewhere, or be inactive.
 */
export const selectNodesByCapability = ({ tenantId, userId, access, from, limit }: Asked<string>) =>
  sql.type(foundRow)`
  WITH asked AS MATERIALIZED (
    SELECT t.tenant_id, u.user_id, c.cap_id,
      ${from}::uuid AS from_id
    FROM tenants t JOIN users u ON u.tenant_id = t.tenant_id CROSS JOIN capabilities c
    WHERE t.tenant_id = ${tenantId}::uuid AND t.tenant_state_code = 'active'
      AND u.user_id = ${userId}::uuid AND u.user_state_code = 'active' AND c.cap_key = ${access}
  ), held AS MATERIALIZED (
    SELECT here.org_node_id, here.start_utc, here.lasts_utc
    FROM asked
    CROSS JOIN LATERAL roles_by_capability(asked.user_id, asked.cap_id) AS able (role_id)
    CROSS JOIN LATERAL (
      SELECT a.org_node_id, a.start_utc, a.lasts_utc FROM org_assignments a
      WHERE a.user_id = asked.user_id AND a.role_id = able.role_id
      OFFSET 0
    ) here
    LIMIT 5000
  ), roots AS MATERIALIZED (
    SELECT DISTINCT h.org_node_id FROM held h
    WHERE (SELECT count(*) < 5000 FROM held)
      AND h.start_utc <= now() AND h.lasts_utc > now()
  ), size AS MATERIALIZED (
    SELECT count(*) <= 1000 AND (SELECT count(*) < 5000 FROM held) AS few,
      greatest(2000 / greatest(count(*), 1), 16) AS row_max
    FROM roots
  ), streams AS MATERIALIZED (
    SELECT s.org_node_id, row_number() OVER (PARTITION BY o.org_node_id ORDER BY s.org_node_id) AS position
    FROM (
      SELECT r.org_node_id FROM roots r
      WHERE (SELECT size.few FROM size) AND NOT EXISTS (
        SELECT FROM org_node_paths q
        JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
        WHERE q.descendant_org_node_id = r.org_node_id)
    ) o
    CROSS JOIN LATERAL (
      SELECT p.descendant_org_node_id AS org_node_id FROM org_node_paths p
      WHERE p.ancestor_org_node_id = o.org_node_id AND p.descendant_org_node_id >= (SELECT asked.from_id FROM asked)
      ORDER BY p.descendant_org_node_id
      LIMIT (SELECT size.row_max FROM size)
    ) s
  ), ends AS MATERIALIZED (
    SELECT asked.tenant_id, asked.cap_id, asked.from_id, size.few, (
      SELECT s.org_node_id FROM streams s WHERE s.position = size.row_max ORDER BY s.org_node_id LIMIT 1
    ) AS streams_id, (
      SELECT n.org_node_id FROM org_nodes n
      WHERE n.tenant_id = asked.tenant_id AND n.org_node_id >= asked.from_id
      ORDER BY n.org_node_id OFFSET 1999 LIMIT 1
    ) AS nodes_id
    FROM asked CROSS JOIN size
  ), cut AS MATERIALIZED (
    SELECT e.tenant_id, e.cap_id, e.from_id, w.by_streams,
      CASE WHEN w.by_streams THEN e.streams_id ELSE e.nodes_id END AS cut_id
    FROM ends e CROSS JOIN LATERAL (
      SELECT e.few AND (e.streams_id IS NULL OR coalesce(e.streams_id >= e.nodes_id, false)) AS by_streams
    ) w
  )
  SELECT cut.cut_id, node.org_node_id, node.tenant_id, node.node_type_code, node.node_label, node.parent_org_node_id,
    node.active_flag, node.created_utc, node.depth_val
  FROM cut LEFT JOIN LATERAL (
    (SELECT w.org_node_id
    FROM (
      SELECT DISTINCT s.org_node_id FROM streams s
      WHERE cut.by_streams AND (cut.cut_id IS NULL OR s.org_node_id <= cut.cut_id)
      ORDER BY s.org_node_id
    ) w
    WHERE NOT EXISTS (
      SELECT FROM org_node_paths q
      JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
      WHERE q.descendant_org_node_id = w.org_node_id)
    ORDER BY w.org_node_id
    LIMIT ${limit})
    UNION ALL
    (SELECT w.org_node_id
    FROM (
      SELECT n.org_node_id FROM org_nodes n
      WHERE NOT cut.by_streams AND n.tenant_id = cut.tenant_id AND n.org_node_id >= cut.from_id
      ORDER BY n.org_node_id
      LIMIT 2000
    ) w
    WHERE EXISTS (
      SELECT FROM org_node_paths p CROSS JOIN LATERAL (
        SELECT here.role_id
        FROM (
          SELECT a.role_id, row_number() OVER () AS position
          FROM org_assignments a
          WHERE a.user_id = ${userId}::uuid AND a.org_node_id = p.ancestor_org_node_id
            AND a.start_utc <= now() AND a.lasts_utc > now()
          LIMIT 64
        ) here
        LEFT JOIN role_capabilities k ON k.role_id = here.role_id AND k.cap_id = cut.cap_id
        WHERE k.role_id IS NOT NULL
          OR (here.position = 64 AND holds_by_role(${userId}::uuid, ARRAY[p.ancestor_org_node_id], cut.cap_id))
        LIMIT 1
      ) granted
      WHERE p.descendant_org_node_id = w.org_node_id
    ) AND NOT EXISTS (
      SELECT FROM org_node_paths q
      JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
      WHERE q.descendant_org_node_id = w.org_node_id)
    ORDER BY w.org_node_id
    LIMIT ${limit})
  ) found ON true
  LEFT JOIN LATERAL (
    SELECT n.org_node_id, n.tenant_id, n.node_type_code, n.node_label, n.parent_org_node_id, n.active_flag, n.created_utc,
      (SELECT max(p.depth_val) FROM org_node_paths p WHERE p.descendant_org_node_id = n.org_node_id) AS depth_val
    FROM org_nodes n WHERE n.org_node_id = found.org_node_id
    OFFSET 0
  ) node ON true
  ORDER BY found.org_node_id`;

/** Likewise by grants. */
export const selectNodesByScope = ({ tenantId, userId, access, from, limit }: Asked<ScopeCode>) =>
  sql.type(foundRow)`
  WITH asked AS MATERIALIZED (
    SELECT t.tenant_id, u.user_id, ${from}::uuid AS from_id
    FROM tenants t JOIN users u ON u.tenant_id = t.tenant_id
    WHERE t.tenant_id = ${tenantId}::uuid AND t.tenant_state_code = 'active'
      AND u.user_id = ${userId}::uuid AND u.user_state_code = 'active'
  ), held AS MATERIALIZED (
    SELECT g.org_node_id, g.access_scope_code, g.start_utc, g.lasts_utc
    FROM visibility_grants g WHERE g.user_id = (SELECT asked.user_id FROM asked)
    LIMIT 5000
  ), roots AS MATERIALIZED (
    SELECT DISTINCT h.org_node_id FROM held h
    WHERE (SELECT count(*) < 5000 FROM held)
      AND h.start_utc <= now() AND h.lasts_utc > now()
      AND (h.access_scope_code = 'analyze' OR ${access} = 'read')
  ), size AS MATERIALIZED (
    SELECT count(*) <= 1000 AND (SELECT count(*) < 5000 FROM held) AS few,
      greatest(2000 / greatest(count(*), 1), 16) AS row_max
    FROM roots
  ), streams AS MATERIALIZED (
    SELECT s.org_node_id, row_number() OVER (PARTITION BY o.org_node_id ORDER BY s.org_node_id) AS position
    FROM (
      SELECT r.org_node_id FROM roots r
      WHERE (SELECT size.few FROM size) AND NOT EXISTS (
        SELECT FROM org_node_paths q
        JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
        WHERE q.descendant_org_node_id = r.org_node_id)
    ) o
    CROSS JOIN LATERAL (
      SELECT p.descendant_org_node_id AS org_node_id FROM org_node_paths p
      WHERE p.ancestor_org_node_id = o.org_node_id AND p.descendant_org_node_id >= (SELECT asked.from_id FROM asked)
      ORDER BY p.descendant_org_node_id
      LIMIT (SELECT size.row_max FROM size)
    ) s
  ), ends AS MATERIALIZED (
    SELECT asked.tenant_id, asked.from_id, size.few, (
      SELECT s.org_node_id FROM streams s WHERE s.position = size.row_max ORDER BY s.org_node_id LIMIT 1
    ) AS streams_id, (
      SELECT n.org_node_id FROM org_nodes n
      WHERE n.tenant_id = asked.tenant_id AND n.org_node_id >= asked.from_id
      ORDER BY n.org_node_id OFFSET 1999 LIMIT 1
    ) AS nodes_id
    FROM asked CROSS JOIN size
  ), cut AS MATERIALIZED (
    SELECT e.tenant_id, e.from_id, w.by_streams,
      CASE WHEN w.by_streams THEN e.streams_id ELSE e.nodes_id END AS cut_id
    FROM ends e CROSS JOIN LATERAL (
      SELECT e.few AND (e.streams_id IS NULL OR coalesce(e.streams_id >= e.nodes_id, false)) AS by_streams
    ) w
  )
  SELECT cut.cut_id, node.org_node_id, node.tenant_id, node.node_type_code, node.node_label, node.parent_org_node_id,
    node.active_flag, node.created_utc, node.depth_val
  FROM cut LEFT JOIN LATERAL (
    (SELECT w.org_node_id
    FROM (
      SELECT DISTINCT s.org_node_id FROM streams s
      WHERE cut.by_streams AND (cut.cut_id IS NULL OR s.org_node_id <= cut.cut_id)
      ORDER BY s.org_node_id
    ) w
    WHERE NOT EXISTS (
      SELECT FROM org_node_paths q
      JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
      WHERE q.descendant_org_node_id = w.org_node_id)
    ORDER BY w.org_node_id
    LIMIT ${limit})
    UNION ALL
    (SELECT w.org_node_id
    FROM (
      SELECT n.org_node_id FROM org_nodes n
      WHERE NOT cut.by_streams AND n.tenant_id = cut.tenant_id AND n.org_node_id >= cut.from_id
      ORDER BY n.org_node_id
      LIMIT 2000
    ) w
    WHERE EXISTS (
      SELECT FROM org_node_paths p CROSS JOIN LATERAL (
        (SELECT g.grant_id FROM visibility_grants g
        WHERE ${access} = 'read' AND g.user_id = ${userId}::uuid AND g.org_node_id = p.ancestor_org_node_id
          AND g.start_utc <= now() AND g.lasts_utc > now()
        LIMIT 1)
        UNION ALL
        (SELECT g.grant_id FROM visibility_grants g
        WHERE ${access} = 'analyze' AND g.user_id = ${userId}::uuid AND g.org_node_id = p.ancestor_org_node_id
          AND g.access_scope_code = 'analyze' AND g.start_utc <= now() AND g.lasts_utc > now()
        LIMIT 1)
      ) granted
      WHERE p.descendant_org_node_id = w.org_node_id
    ) AND NOT EXISTS (
      SELECT FROM org_node_paths q
      JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
      WHERE q.descendant_org_node_id = w.org_node_id)
    ORDER BY w.org_node_id
    LIMIT ${limit})
  ) found ON true
  LEFT JOIN LATERAL (
    SELECT n.org_node_id, n.tenant_id, n.node_type_code, n.node_label, n.parent_org_node_id, n.active_flag, n.created_utc,
      (SELECT max(p.depth_val) FROM org_node_paths p WHERE p.descendant_org_node_id = n.org_node_id) AS depth_val
    FROM org_nodes n WHERE n.org_node_id = found.org_node_id
    OFFSET 0
  ) node ON true
  ORDER BY found.org_node_id`;

export const accessibleNodeHandlers = ({ db }: OrgParts) =>
  ({
    async listAccessibleNodes(request, call) {
      const page = readPage(ListAccessibleNodesRequestSchema, request, z.guid());
      const { tenantId, userId, access } = request;
      const asked = { tenantId, userId, from: leastAfter(page.after), limit: page.size + 1 };
      const select =
        access.case === "scope"
          ? selectNodesByScope({ ...asked, access: scopeCode(access.value) })
          : selectNodesByCapability({ ...asked, access: access.value ?? "" });
      const rows = await read(db, call, (connection) => connection.any(select));
      const found = cutStreams<NodeRow>(page, rows, ({ org_node_id }) => org_node_id);
      return { nodes: found.rows.map(nodeMessage), nextPageToken: found.nextPageToken };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
