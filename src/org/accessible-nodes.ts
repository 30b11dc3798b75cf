import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { ListAccessibleNodesRequestSchema, type OrgService } from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readPage } from "../rpc/page.ts";
import { cutStreams } from "./access-pages.ts";
import { nodeMessage, selectNodes } from "./nodes.ts";
import type { OrgParts } from "./parts.ts";
import { type ScopeCode, scopeCode } from "./visibility-checks.ts";

const foundRow = z.object({
  /** Up to where all streams were read; null where they were read to their end. */
  cut_id: z.string().nullable(),
  org_node_id: z.string().nullable(),
});

interface Asked<Access> {
  readonly tenantId: string;
  readonly userId: string;
  readonly access: Access;
  readonly after: string | null;
  readonly limit: number;
}

/**
 * Each node with an assignment gives the nodes below it in the order of their ids, a stream of bounded length; what all
 * streams were read up to is the window, and only open nodes of it are answered. 2,000 rows are read for one such node,
 * and 16 at least for each of many, so a page costs the same wherever it starts and whatever is inactive.
 */
export const selectNodesByCapability = ({ tenantId, userId, access, after, limit }: Asked<string>) =>
  sql.type(foundRow)`
  WITH roots AS MATERIALIZED (
    SELECT DISTINCT a.org_node_id
    FROM tenants t
    JOIN users u ON u.tenant_id = t.tenant_id
    JOIN org_assignments a ON a.user_id = u.user_id
    JOIN role_capabilities h ON h.role_id = a.role_id
    JOIN capabilities c ON c.cap_id = h.cap_id
    WHERE t.tenant_id = ${tenantId}::uuid AND t.tenant_state_code = 'active'
      AND u.user_id = ${userId}::uuid AND u.user_state_code = 'active'
      AND a.cancelled_utc IS NULL AND a.start_utc <= now() AND (a.end_utc IS NULL OR a.end_utc > now())
      AND c.cap_key = ${access}
  ), depth AS MATERIALIZED (
    SELECT greatest(2000 / greatest(count(*), 1), 16) AS row_max FROM roots
  ), streams AS MATERIALIZED (
    SELECT s.org_node_id, row_number() OVER (PARTITION BY r.org_node_id ORDER BY s.org_node_id) AS position
    FROM roots r
    CROSS JOIN LATERAL (
      SELECT p.descendant_org_node_id AS org_node_id FROM org_node_paths p
      WHERE p.ancestor_org_node_id = r.org_node_id
        AND p.descendant_org_node_id > coalesce(${after}::uuid, '00000000-0000-0000-0000-000000000000')
      ORDER BY p.descendant_org_node_id
      LIMIT (SELECT d.row_max FROM depth d)
    ) s
  ), cut AS MATERIALIZED (
    SELECT (
      SELECT s.org_node_id FROM streams s WHERE s.position = (SELECT d.row_max FROM depth d)
      ORDER BY s.org_node_id LIMIT 1
    ) AS cut_id
  )
  SELECT cut.cut_id, found.org_node_id
  FROM cut LEFT JOIN LATERAL (
    SELECT w.org_node_id
    FROM (
      SELECT DISTINCT s.org_node_id FROM streams s
      WHERE cut.cut_id IS NULL OR s.org_node_id <= cut.cut_id
      ORDER BY s.org_node_id
    ) w
    WHERE NOT EXISTS (
      SELECT FROM org_node_paths q
      JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
      WHERE q.descendant_org_node_id = w.org_node_id)
    ORDER BY w.org_node_id
    LIMIT ${limit}
  ) found ON true
  ORDER BY found.org_node_id`;

/** Likewise by grants. */
export const selectNodesByScope = ({ tenantId, userId, access, after, limit }: Asked<ScopeCode>) =>
  sql.type(foundRow)`
  WITH roots AS MATERIALIZED (
    SELECT DISTINCT g.org_node_id
    FROM tenants t
    JOIN users u ON u.tenant_id = t.tenant_id
    JOIN visibility_grants g ON g.user_id = u.user_id
    WHERE t.tenant_id = ${tenantId}::uuid AND t.tenant_state_code = 'active'
      AND u.user_id = ${userId}::uuid AND u.user_state_code = 'active'
      AND g.cancelled_utc IS NULL AND g.start_utc <= now() AND (g.end_utc IS NULL OR g.end_utc > now())
      AND (g.access_scope_code = 'analyze' OR ${access} = 'read')
  ), depth AS MATERIALIZED (
    SELECT greatest(2000 / greatest(count(*), 1), 16) AS row_max FROM roots
  ), streams AS MATERIALIZED (
    SELECT s.org_node_id, row_number() OVER (PARTITION BY r.org_node_id ORDER BY s.org_node_id) AS position
    FROM roots r
    CROSS JOIN LATERAL (
      SELECT p.descendant_org_node_id AS org_node_id FROM org_node_paths p
      WHERE p.ancestor_org_node_id = r.org_node_id
        AND p.descendant_org_node_id > coalesce(${after}::uuid, '00000000-0000-0000-0000-000000000000')
      ORDER BY p.descendant_org_node_id
      LIMIT (SELECT d.row_max FROM depth d)
    ) s
  ), cut AS MATERIALIZED (
    SELECT (
      SELECT s.org_node_id FROM streams s WHERE s.position = (SELECT d.row_max FROM depth d)
      ORDER BY s.org_node_id LIMIT 1
    ) AS cut_id
  )
  SELECT cut.cut_id, found.org_node_id
  FROM cut LEFT JOIN LATERAL (
    SELECT w.org_node_id
    FROM (
      SELECT DISTINCT s.org_node_id FROM streams s
      WHERE cut.cut_id IS NULL OR s.org_node_id <= cut.cut_id
      ORDER BY s.org_node_id
    ) w
    WHERE NOT EXISTS (
      SELECT FROM org_node_paths q
      JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
      WHERE q.descendant_org_node_id = w.org_node_id)
    ORDER BY w.org_node_id
    LIMIT ${limit}
  ) found ON true
  ORDER BY found.org_node_id`;

export const accessibleNodeHandlers = ({ db }: OrgParts) =>
  ({
    async listAccessibleNodes(request, call) {
      const page = readPage(ListAccessibleNodesRequestSchema, request, z.guid());
      const { tenantId, userId, access } = request;
      const asked = { tenantId, userId, after: page.after ?? null, limit: page.size + 1 };
      const select =
        access.case === "scope"
          ? selectNodesByScope({ ...asked, access: scopeCode(access.value) })
          : selectNodesByCapability({ ...asked, access: access.value ?? "" });
      return read(db, call, async (connection) => {
        const found = cutStreams(page, await connection.many(select), ({ org_node_id }) => org_node_id);
        const ids = found.rows.map(({ org_node_id }) => org_node_id);
        const nodes = ids.length === 0 ? [] : await connection.any(selectNodes(ids));
        const byId = new Map(nodes.map((node) => [node.org_node_id, node]));
        return {
          nodes: ids.flatMap((id) => byId.get(id) ?? []).map(nodeMessage),
          nextPageToken: found.nextPageToken,
        };
      });
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
