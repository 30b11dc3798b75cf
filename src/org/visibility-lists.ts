import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { ListVisibilityGrantsRequestSchema, type OrgService } from "../gen/org/v1/org_pb.ts";
import { CANDIDATES, candidateColumns, cutCandidates } from "../rpc/candidates.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readPage } from "../rpc/page.ts";
import { microsecondsOf } from "../rpc/timestamps.ts";
import type { OrgParts } from "./parts.ts";
import { type ScopeCode, scopeCode } from "./visibility-checks.ts";
import { grantMessage, grantRow } from "./visibility.ts";
import { timeText } from "./windows.ts";

const foundRow = grantRow.extend(candidateColumns);

export interface GrantFilter {
  readonly tenantId: string;
  readonly userId: string | null;
  readonly nodeId: string | null;
  readonly scope: ScopeCode | null;
  readonly activeAt: string | null;
}

/**
 * The one filter whose index is read. The tenant's own index must not look cheaper: what a user has may stand at the end
 * of it, so where something else leads, the tenant is compared in a way that no index serves.
 */
const leadOf = ({ tenantId, userId, nodeId, scope }: GrantFilter) => ({
  tenantId: userId === null && nodeId === null ? tenantId : null,
  userId,
  nodeId: userId === null ? nodeId : null,
  scope: userId === null && nodeId === null ? scope : null,
});

/** Exported for the test that holds its plans. */
export const selectGrants = (filter: GrantFilter, after: string | null, limit: number) => {
  const lead = leadOf(filter);
  return sql.type(foundRow)`
  SELECT w.grant_id, w.tenant_id, w.user_id, w.org_node_id, w.access_scope_code,
    (extract(epoch FROM w.start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM w.end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM w.cancelled_utc) * 1000000)::bigint AS cancelled_us,
    w.matches, w.position
  FROM (
    SELECT g.grant_id, g.tenant_id, g.user_id, g.org_node_id, g.access_scope_code, g.start_utc, g.end_utc,
      g.cancelled_utc,
      coalesce((${filter.nodeId}::uuid IS NULL OR g.org_node_id = ${filter.nodeId}::uuid)
        AND (${filter.scope}::text IS NULL OR g.access_scope_code = ${filter.scope}::text)
        AND (${filter.activeAt}::timestamptz IS NULL
          OR g.start_utc <= ${filter.activeAt}::timestamptz AND g.lasts_utc > ${filter.activeAt}::timestamptz), false)
        AS matches,
      row_number() OVER (ORDER BY g.grant_id) AS position
    FROM visibility_grants g
    WHERE g.tenant_id IS NOT DISTINCT FROM ${filter.tenantId}::uuid
      AND (${lead.tenantId}::uuid IS NULL OR g.tenant_id = ${lead.tenantId}::uuid)
      AND (${lead.userId}::uuid IS NULL OR g.user_id = ${lead.userId}::uuid)
      AND (${lead.nodeId}::uuid IS NULL OR g.org_node_id = ${lead.nodeId}::uuid)
      AND (${lead.scope}::text IS NULL OR g.access_scope_code = ${lead.scope}::text)
      AND (${after}::uuid IS NULL OR g.grant_id > ${after}::uuid)
    ORDER BY g.grant_id
    LIMIT ${CANDIDATES}
  ) w
  WHERE w.matches OR w.position = ${CANDIDATES}
  ORDER BY w.grant_id
  LIMIT ${limit}`;
};

export const visibilityListHandlers = ({ db }: OrgParts) =>
  ({
    async listVisibilityGrants(request, call) {
      const page = readPage(ListVisibilityGrantsRequestSchema, request, z.guid());
      const { tenantId, userId = null, nodeId = null, activeAt } = request;
      const scope = request.scope === undefined ? null : scopeCode(request.scope);
      const filter = { tenantId, userId, nodeId, scope, activeAt: timeText(microsecondsOf(activeAt)) };
      const list = selectGrants(filter, page.after ?? null, page.size + 1);
      const found = await read(db, call, (connection) => connection.any(list));
      const { rows, nextPageToken } = cutCandidates(page, found, (row) => row.grant_id);
      return { grants: rows.map(grantMessage), nextPageToken };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
