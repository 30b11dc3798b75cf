import { sql } from "slonik";
import { z } from "zod";
import { createCoalescer } from "../db/coalesce.ts";
import { column } from "../db/columns.ts";
import { read } from "../db/transact.ts";
import type { OrgService } from "../gen/org/v1/org_pb.ts";
import { detached } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { DECISION_CODES, type DecisionCode, decisionMessage } from "./decisions.ts";
import type { OrgParts } from "./parts.ts";

/** Whether a user holds a capability at a node. */
export interface AccessCheck {
  readonly tenantId: string;
  readonly userId: string;
  readonly nodeId: string;
  readonly capability: string;
}

const decisionsRow = z.object({ codes: z.array(z.enum(DECISION_CODES)) });

/**
 * Decides all checks by one snapshot; answers with one row of their codes, in their order.
 *
 * Prepared once for a connection: planning was most of a lone check. Arrays come as subqueries, which hide their length
 * from the planner; what it cannot see it does not plan anew for. OFFSET 0 holds the order of the joins: a user may have
 * 20,000 assignments, a node has a hundred ancestors at most, which are read once. Where the user has thousands on those, 64
 * are looked at one by one and all others by role. Measured by test/bench/check-access.ts.
 */
export const selectDecisions = (checks: readonly AccessCheck[]) => sql.prepared("select-decisions", decisionsRow)`
  SELECT coalesce(array_agg(
    CASE
      WHEN t.tenant_id IS NULL THEN 'UNKNOWN_TENANT'
      WHEN t.tenant_state_code <> 'active' THEN 'TENANT_SUSPENDED'
      WHEN u.user_id IS NULL THEN 'UNKNOWN_USER'
      WHEN u.user_state_code <> 'active' THEN 'USER_INACTIVE'
      WHEN n.org_node_id IS NULL THEN 'UNKNOWN_NODE'
      WHEN EXISTS (
        SELECT FROM org_nodes i WHERE i.org_node_id = ANY (ancestors.ids) AND NOT i.active_flag
      ) THEN 'NODE_INACTIVE'
      WHEN c.cap_id IS NULL THEN 'UNKNOWN_CAPABILITY'
      WHEN NOT EXISTS (
        SELECT FROM (
          SELECT here.role_id, row_number() OVER () AS position
          FROM unnest(ancestors.ids) AS ancestor (id)
          CROSS JOIN LATERAL (
            SELECT a.role_id FROM org_assignments a
            WHERE a.user_id = asked.user_id AND a.org_node_id = ancestor.id
              AND a.start_utc <= now() AND a.lasts_utc > now()
            OFFSET 0
          ) here
          LIMIT 64
        ) held
        LEFT JOIN role_capabilities h ON h.role_id = held.role_id AND h.cap_id = c.cap_id
        WHERE h.role_id IS NOT NULL
          OR (held.position = 64 AND holds_by_role(asked.user_id, ancestors.ids, c.cap_id))
      ) THEN 'NO_GRANT'
      ELSE 'GRANTED'
    END ORDER BY asked.position), '{}') AS codes
  FROM unnest(
    (SELECT ${sql.array(column(checks, "tenantId"), "uuid")}),
    (SELECT ${sql.array(column(checks, "userId"), "uuid")}),
    (SELECT ${sql.array(column(checks, "nodeId"), "uuid")}),
    (SELECT ${sql.array(column(checks, "capability"), "text")})
  ) WITH ORDINALITY AS asked (tenant_id, user_id, org_node_id, cap_key, position)
  LEFT JOIN tenants t ON t.tenant_id = asked.tenant_id
  LEFT JOIN users u ON u.tenant_id = asked.tenant_id AND u.user_id = asked.user_id
  LEFT JOIN org_nodes n ON n.tenant_id = asked.tenant_id AND n.org_node_id = asked.org_node_id
  LEFT JOIN capabilities c ON c.cap_key = asked.cap_key
  CROSS JOIN LATERAL (
    SELECT ARRAY(
      SELECT p.ancestor_org_node_id FROM org_node_paths p WHERE p.descendant_org_node_id = asked.org_node_id
    ) AS ids
    OFFSET 0
  ) ancestors`;

export const accessHandlers = ({ db }: OrgParts) => {
  // By limits of its own: one statement answers the checks of many callers.
  const decide = createCoalescer<AccessCheck, DecisionCode>(async (checks) => {
    const { codes } = await read(db, detached(), (connection) => connection.one(selectDecisions(checks)));
    return codes;
  });

  return {
    async checkAccess(check, call) {
      return decisionMessage(await decide(call, check));
    },

    async batchCheckAccess({ tenantId, checks }, call) {
      const asked = checks.map(({ userId, nodeId, capability }) => ({ tenantId, userId, nodeId, capability }));
      const { codes } = await read(db, call, (connection) => connection.one(selectDecisions(asked)));
      return { results: codes.map(decisionMessage) };
    },
  } satisfies Partial<Handlers<typeof OrgService>>;
};
