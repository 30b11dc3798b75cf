import { sql } from "slonik";
import { z } from "zod";
import { createCoalescer } from "../db/coalesce.ts";
import { column } from "../db/columns.ts";
import { read } from "../db/transact.ts";
import { AccessScope, type OrgService } from "../gen/org/v1/org_pb.ts";
import { detached } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { DECISION_CODES, type DecisionCode, decisionMessage } from "./decisions.ts";
import type { OrgParts } from "./parts.ts";

export type ScopeCode = "read" | "analyze";

/** The rules of every request refuse a scope that is not said. */
export const scopeCode = (scope: AccessScope): ScopeCode => (scope === AccessScope.ANALYZE ? "analyze" : "read");

/** Whether a user may see what stands at a node. */
interface VisibilityCheck {
  readonly tenantId: string;
  readonly userId: string;
  readonly nodeId: string;
  readonly scope: ScopeCode;
}

const decisionsRow = z.object({ codes: z.array(z.enum(DECISION_CODES)) });

/**
 * As selectDecisions, by grants; `analyze` includes `read`. Who is asked for `analyze` may have thousands to read, which an
 * index of the others passes over.
 */
export const selectVisibilities = (checks: readonly VisibilityCheck[]) =>
  sql.prepared("select-visibilities", decisionsRow)`
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
      WHEN NOT CASE asked.scope
        WHEN 'read' THEN EXISTS (
          SELECT FROM unnest(ancestors.ids) AS ancestor (id)
          CROSS JOIN LATERAL (
            SELECT g.grant_id FROM visibility_grants g
            WHERE g.user_id = asked.user_id AND g.org_node_id = ancestor.id
              AND g.start_utc <= now() AND g.lasts_utc > now()
            LIMIT 1
          ) granted
        ) ELSE EXISTS (
          SELECT FROM unnest(ancestors.ids) AS ancestor (id)
          CROSS JOIN LATERAL (
            SELECT g.grant_id FROM visibility_grants g
            WHERE g.user_id = asked.user_id AND g.org_node_id = ancestor.id AND g.access_scope_code = 'analyze'
              AND g.start_utc <= now() AND g.lasts_utc > now()
            LIMIT 1
          ) granted
        )
      END THEN 'NO_GRANT'
      ELSE 'GRANTED'
    END ORDER BY asked.position), '{}') AS codes
  FROM unnest(
    (SELECT ${sql.array(column(checks, "tenantId"), "uuid")}),
    (SELECT ${sql.array(column(checks, "userId"), "uuid")}),
    (SELECT ${sql.array(column(checks, "nodeId"), "uuid")}),
    (SELECT ${sql.array(column(checks, "scope"), "text")})
  ) WITH ORDINALITY AS asked (tenant_id, user_id, org_node_id, scope, position)
  LEFT JOIN tenants t ON t.tenant_id = asked.tenant_id
  LEFT JOIN users u ON u.tenant_id = asked.tenant_id AND u.user_id = asked.user_id
  LEFT JOIN org_nodes n ON n.tenant_id = asked.tenant_id AND n.org_node_id = asked.org_node_id
  CROSS JOIN LATERAL (
    SELECT ARRAY(
      SELECT p.ancestor_org_node_id FROM org_node_paths p WHERE p.descendant_org_node_id = asked.org_node_id
    ) AS ids
    OFFSET 0
  ) ancestors`;

export const visibilityCheckHandlers = ({ db }: OrgParts) => {
  const decide = createCoalescer<VisibilityCheck, DecisionCode>(async (checks) => {
    const { codes } = await read(db, detached(), (connection) => connection.one(selectVisibilities(checks)));
    return codes;
  });

  return {
    async checkVisibility({ tenantId, userId, nodeId, scope }, call) {
      return decisionMessage(await decide(call, { tenantId, userId, nodeId, scope: scopeCode(scope) }));
    },
  } satisfies Partial<Handlers<typeof OrgService>>;
};
