import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { ListAssignmentsRequestSchema, type OrgService } from "../gen/org/v1/org_pb.ts";
import { CANDIDATES, candidateColumns, cutCandidates } from "../rpc/candidates.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readPage } from "../rpc/page.ts";
import { microsecondsOf } from "../rpc/timestamps.ts";
import { assignmentMessage, assignmentRow } from "./assignments.ts";
import type { OrgParts } from "./parts.ts";
import { timeText } from "./windows.ts";

const foundRow = assignmentRow.extend(candidateColumns);

export interface AssignmentFilter {
  readonly tenantId: string;
  readonly userId: string | null;
  readonly nodeId: string | null;
  readonly roleId: string | null;
  readonly activeAt: string | null;
}

/**
 * The one filter whose index is read. The tenant's own index must not look cheaper: what a user has may stand at the end
 * of it, so where something else leads, the tenant is compared in a way that no index serves.
 */
const leadOf = ({ tenantId, userId, nodeId, roleId }: AssignmentFilter) => ({
  tenantId: userId === null && nodeId === null && roleId === null ? tenantId : null,
  userId,
  nodeId: userId === null ? nodeId : null,
  roleId: userId === null && nodeId === null ? roleId : null,
});

/** Exported for the test that holds its plans. */
export const selectAssignments = (filter: AssignmentFilter, after: string | null, limit: number) => {
  const lead = leadOf(filter);
  return sql.type(foundRow)`
  SELECT w.assignment_id, w.tenant_id, w.user_id, w.org_node_id, w.role_id,
    (extract(epoch FROM w.start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM w.end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM w.cancelled_utc) * 1000000)::bigint AS cancelled_us,
    w.matches, w.position
  FROM (
    SELECT a.assignment_id, a.tenant_id, a.user_id, a.org_node_id, a.role_id, a.start_utc, a.end_utc, a.cancelled_utc,
      coalesce((${filter.nodeId}::uuid IS NULL OR a.org_node_id = ${filter.nodeId}::uuid)
        AND (${filter.roleId}::uuid IS NULL OR a.role_id = ${filter.roleId}::uuid)
        AND (${filter.activeAt}::timestamptz IS NULL
          OR a.start_utc <= ${filter.activeAt}::timestamptz AND a.lasts_utc > ${filter.activeAt}::timestamptz), false)
        AS matches,
      row_number() OVER (ORDER BY a.assignment_id) AS position
    FROM org_assignments a
    WHERE a.tenant_id IS NOT DISTINCT FROM ${filter.tenantId}::uuid
      AND (${lead.tenantId}::uuid IS NULL OR a.tenant_id = ${lead.tenantId}::uuid)
      AND (${lead.userId}::uuid IS NULL OR a.user_id = ${lead.userId}::uuid)
      AND (${lead.nodeId}::uuid IS NULL OR a.org_node_id = ${lead.nodeId}::uuid)
      AND (${lead.roleId}::uuid IS NULL OR a.role_id = ${lead.roleId}::uuid)
      AND (${after}::uuid IS NULL OR a.assignment_id > ${after}::uuid)
    ORDER BY a.assignment_id
    LIMIT ${CANDIDATES}
  ) w
  WHERE w.matches OR w.position = ${CANDIDATES}
  ORDER BY w.assignment_id
  LIMIT ${limit}`;
};

export const assignmentListHandlers = ({ db }: OrgParts) =>
  ({
    async listAssignments(request, call) {
      const page = readPage(ListAssignmentsRequestSchema, request, z.guid());
      const { tenantId, userId = null, nodeId = null, roleId = null, activeAt } = request;
      const filter = { tenantId, userId, nodeId, roleId, activeAt: timeText(microsecondsOf(activeAt)) };
      const list = selectAssignments(filter, page.after ?? null, page.size + 1);
      const found = await read(db, call, (connection) => connection.any(list));
      const { rows, nextPageToken } = cutCandidates(page, found, (row) => row.assignment_id);
      return { assignments: rows.map(assignmentMessage), nextPageToken };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
