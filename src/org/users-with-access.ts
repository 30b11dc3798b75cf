import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { ListUsersWithAccessRequestSchema, type OrgService } from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readPage } from "../rpc/page.ts";
import { cutStreams, leastAfter } from "./access-pages.ts";
import type { OrgParts } from "./parts.ts";
import { type ScopeCode, scopeCode } from "./visibility-checks.ts";

const foundRow = z.object({
  /** Up to where all streams were read; null where they were read to their end. */
  cut_id: z.string().nullable(),
  user_id: z.string().nullable(),
  /** The assignment or grant. */
  via_id: z.string().nullable(),
});

interface Asked<Access> {
  readonly tenantId: string;
  readonly nodeId: string;
  readonly access: Access;
  /** The first id to look at; null where none is left. */
  readonly from: string | null;
  readonly limit: number;
}

/**
 * The node and each ancestor give the users with assignments there in the order of their ids, streams of bounded length;
 * what all streams were read up to is the window, and each user of it is decided as a check would be.
 */
export const selectUsersByCapability = ({ tenantId, nodeId, access, from, limit }: Asked<string>) =>
  sql.type(foundRow)`
  WITH places AS MATERIALIZED (
    SELECT p.ancestor_org_node_id AS org_node_id, c.cap_id
    FROM tenants t
    JOIN org_nodes n ON n.tenant_id = t.tenant_id
    JOIN org_node_paths p ON p.descendant_org_node_id = n.org_node_id
    CROSS JOIN capabilities c
    WHERE t.tenant_id = ${tenantId}::uuid AND t.tenant_state_code = 'active' AND n.org_node_id = ${nodeId}::uuid
      AND c.cap_key = ${access}
      AND NOT EXISTS (
        SELECT FROM org_node_paths q
        JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
        WHERE q.descendant_org_node_id = ${nodeId}::uuid)
  ), depth AS MATERIALIZED (
    SELECT greatest(2000 / greatest(count(*), 1), 16) AS row_max FROM places
  ), streams AS MATERIALIZED (
    SELECT s.user_id, row_number() OVER (PARTITION BY r.org_node_id ORDER BY s.user_id) AS position
    FROM places r
    CROSS JOIN LATERAL (
      SELECT a.user_id FROM org_assignments a
      WHERE a.org_node_id = r.org_node_id
        AND a.user_id >= ${from}::uuid
      ORDER BY a.user_id
      LIMIT (SELECT d.row_max FROM depth d)
    ) s
  ), cut AS MATERIALIZED (
    SELECT (
      SELECT s.user_id FROM streams s WHERE s.position = (SELECT d.row_max FROM depth d) ORDER BY s.user_id LIMIT 1
    ) AS cut_id
  )
  SELECT cut.cut_id, found.user_id, found.via_id
  FROM cut LEFT JOIN LATERAL (
    SELECT w.user_id, granted.via_id
    FROM (
      SELECT DISTINCT s.user_id FROM streams s
      WHERE cut.cut_id IS NULL OR s.user_id <= cut.cut_id
      ORDER BY s.user_id
    ) w
    CROSS JOIN LATERAL (
      SELECT v.via_id
      FROM places r
      CROSS JOIN LATERAL (
        SELECT a.assignment_id AS via_id FROM org_assignments a
        JOIN role_capabilities h ON h.role_id = a.role_id AND h.cap_id = r.cap_id
        WHERE a.user_id = w.user_id AND a.org_node_id = r.org_node_id
          AND a.start_utc <= now() AND a.lasts_utc > now()
        LIMIT 1
      ) v
      WHERE EXISTS (SELECT FROM users u WHERE u.user_id = w.user_id AND u.user_state_code = 'active')
      LIMIT 1
    ) granted
    ORDER BY w.user_id
    LIMIT ${limit}
  ) found ON true
  ORDER BY found.user_id`;

/** Likewise by grants. */
export const selectUsersByScope = ({ tenantId, nodeId, access, from, limit }: Asked<ScopeCode>) =>
  sql.type(foundRow)`
  WITH places AS MATERIALIZED (
    SELECT p.ancestor_org_node_id AS org_node_id
    FROM tenants t
    JOIN org_nodes n ON n.tenant_id = t.tenant_id
    JOIN org_node_paths p ON p.descendant_org_node_id = n.org_node_id
    WHERE t.tenant_id = ${tenantId}::uuid AND t.tenant_state_code = 'active' AND n.org_node_id = ${nodeId}::uuid
      AND NOT EXISTS (
        SELECT FROM org_node_paths q
        JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
        WHERE q.descendant_org_node_id = ${nodeId}::uuid)
  ), depth AS MATERIALIZED (
    SELECT greatest(2000 / greatest(count(*), 1), 16) AS row_max FROM places
  ), streams AS MATERIALIZED (
    SELECT s.user_id, row_number() OVER (PARTITION BY r.org_node_id ORDER BY s.user_id) AS position
    FROM places r
    CROSS JOIN LATERAL (
      SELECT g.user_id FROM visibility_grants g
      WHERE g.org_node_id = r.org_node_id
        AND g.user_id >= ${from}::uuid
      ORDER BY g.user_id
      LIMIT (SELECT d.row_max FROM depth d)
    ) s
  ), cut AS MATERIALIZED (
    SELECT (
      SELECT s.user_id FROM streams s WHERE s.position = (SELECT d.row_max FROM depth d) ORDER BY s.user_id LIMIT 1
    ) AS cut_id
  )
  SELECT cut.cut_id, found.user_id, found.via_id
  FROM cut LEFT JOIN LATERAL (
    SELECT w.user_id, granted.via_id
    FROM (
      SELECT DISTINCT s.user_id FROM streams s
      WHERE cut.cut_id IS NULL OR s.user_id <= cut.cut_id
      ORDER BY s.user_id
    ) w
    CROSS JOIN LATERAL (
      SELECT v.via_id
      FROM places r
      CROSS JOIN LATERAL (
        SELECT g.grant_id AS via_id FROM visibility_grants g
        WHERE g.user_id = w.user_id AND g.org_node_id = r.org_node_id
          AND g.start_utc <= now() AND g.lasts_utc > now()
          AND (g.access_scope_code = 'analyze' OR ${access} = 'read')
        LIMIT 1
      ) v
      WHERE EXISTS (SELECT FROM users u WHERE u.user_id = w.user_id AND u.user_state_code = 'active')
      LIMIT 1
    ) granted
    ORDER BY w.user_id
    LIMIT ${limit}
  ) found ON true
  ORDER BY found.user_id`;

export const usersWithAccessHandlers = ({ db }: OrgParts) =>
  ({
    async listUsersWithAccess(request, call) {
      const page = readPage(ListUsersWithAccessRequestSchema, request, z.guid());
      const { tenantId, nodeId, access } = request;
      const asked = { tenantId, nodeId, from: leastAfter(page.after), limit: page.size + 1 };
      const byScope = access.case === "scope";
      const select = byScope
        ? selectUsersByScope({ ...asked, access: scopeCode(access.value) })
        : selectUsersByCapability({ ...asked, access: access.value ?? "" });
      const rows = await read(db, call, (connection) => connection.many(select));
      const found = cutStreams(page, rows, ({ user_id }) => user_id);
      const users = found.rows.map(({ user_id, via_id }) => ({
        userId: user_id,
        via: byScope ? { case: "grantId" as const, value: via_id } : { case: "assignmentId" as const, value: via_id },
      }));
      return { users, nextPageToken: found.nextPageToken };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
