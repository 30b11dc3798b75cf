import type { MessageInitShape } from "@bufbuild/protobuf";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { type AuditEvent, recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import type { AssignmentSchema, OrgService } from "../gen/org/v1/org_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";
import { microsecondsOf } from "../rpc/timestamps.ts";
import { holdNode, holdRole, holdUser } from "./holds.ts";
import type { OrgParts } from "./parts.ts";
import {
  type WindowRequest,
  type WindowRow,
  endTooEarly,
  endWindow,
  isSameWindow,
  readWindow,
  timeText,
  windowColumns,
  windowMessage,
  windowPayload,
} from "./windows.ts";

export const assignmentRow = z.object({
  assignment_id: z.string(),
  tenant_id: z.string(),
  user_id: z.string(),
  org_node_id: z.string(),
  role_id: z.string(),
  ...windowColumns,
});
export type AssignmentRow = z.output<typeof assignmentRow>;

const assignmentIdRow = z.object({ assignment_id: z.string() });

/** An assignment to be made. Without a start it begins now. */
interface NewAssignment extends WindowRequest {
  readonly tenantId: string;
  readonly assignmentId: string;
  readonly userId: string;
  readonly nodeId: string;
  readonly roleId: string;
}

const assignmentNowRow = assignmentRow.extend({ now_us: z.bigint() });
const selectAssignment = (tenantId: string, assignmentId: string) => sql.prepared(
  "select-assignment",
  assignmentNowRow,
)`
  SELECT a.assignment_id, a.tenant_id, a.user_id, a.org_node_id, a.role_id,
    (extract(epoch FROM a.start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM a.end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM a.cancelled_utc) * 1000000)::bigint AS cancelled_us,
    (extract(epoch FROM statement_timestamp()) * 1000000)::bigint AS now_us
  FROM org_assignments a WHERE a.tenant_id = ${tenantId}::uuid AND a.assignment_id = ${assignmentId}::uuid`;

/** Of any tenant: an id is unique without one. */
const selectAssignmentAnywhere = (assignmentId: string) => sql.type(assignmentRow)`
  SELECT a.assignment_id, a.tenant_id, a.user_id, a.org_node_id, a.role_id,
    (extract(epoch FROM a.start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM a.end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM a.cancelled_utc) * 1000000)::bigint AS cancelled_us
  FROM org_assignments a WHERE a.assignment_id = ${assignmentId}::uuid`;

/** Inserts nothing where the id is taken, or where the window would end before it begins. */
const insertAssignment = (assignment: NewAssignment) => sql.prepared("insert-assignment", assignmentRow)`
  INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc)
  SELECT ${assignment.assignmentId}::uuid, ${assignment.tenantId}::uuid, ${assignment.userId}::uuid,
    ${assignment.nodeId}::uuid, ${assignment.roleId}::uuid, w.start_utc, w.end_utc
  FROM (
    SELECT coalesce(${timeText(assignment.startUs)}::timestamptz, statement_timestamp()) AS start_utc,
      ${timeText(assignment.endUs)}::timestamptz AS end_utc
  ) w
  WHERE w.end_utc IS NULL OR w.end_utc > w.start_utc
  ON CONFLICT (assignment_id) DO NOTHING
  RETURNING assignment_id, tenant_id, user_id, org_node_id, role_id,
    (extract(epoch FROM start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM cancelled_utc) * 1000000)::bigint AS cancelled_us`;

/**
 * Locks an assignment, and shares its user and role before it, in the order of all locks: an end that moves to later must
 * not escape whoever ends all of a user, or deletes a role that nothing uses.
 */
const lockAssignment = (tenantId: string, assignmentId: string) => sql.type(assignmentIdRow)`
  SELECT a.assignment_id
  FROM org_assignments a JOIN users u ON u.user_id = a.user_id JOIN roles r ON r.role_id = a.role_id
  WHERE a.tenant_id = ${tenantId}::uuid AND a.assignment_id = ${assignmentId}::uuid
  FOR KEY SHARE OF u, r FOR NO KEY UPDATE OF a`;

const updateAssignmentWindow = ({ tenant_id, assignment_id }: AssignmentRow, { end_us, cancelled_us }: WindowRow) =>
  sql.type(assignmentRow)`
  UPDATE org_assignments SET end_utc = ${timeText(end_us)}::timestamptz, cancelled_utc = ${timeText(cancelled_us)}::timestamptz
  WHERE tenant_id = ${tenant_id}::uuid AND assignment_id = ${assignment_id}::uuid
  RETURNING assignment_id, tenant_id, user_id, org_node_id, role_id,
    (extract(epoch FROM start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM cancelled_utc) * 1000000)::bigint AS cancelled_us`;

export const assignmentMessage = (row: AssignmentRow): MessageInitShape<typeof AssignmentSchema> => ({
  assignmentId: row.assignment_id,
  tenantId: row.tenant_id,
  userId: row.user_id,
  nodeId: row.org_node_id,
  roleId: row.role_id,
  ...windowMessage(row),
});

const notFound = (assignmentId: string) => refusal("ASSIGNMENT_NOT_FOUND", { assignment_id: assignmentId });

/** The event of a change to an assignment, which says what has become of it. */
export const assignmentEvent = (action: string, row: AssignmentRow): AuditEvent => ({
  action,
  tenantId: row.tenant_id,
  entityKind: "assignment",
  entityId: row.assignment_id,
  payload: { user_id: row.user_id, node_id: row.org_node_id, role_id: row.role_id, ...windowPayload(row) },
});

const isSameContent = (row: AssignmentRow, assignment: NewAssignment) =>
  row.tenant_id === assignment.tenantId.toLowerCase() &&
  row.user_id === assignment.userId.toLowerCase() &&
  row.org_node_id === assignment.nodeId.toLowerCase() &&
  row.role_id === assignment.roleId.toLowerCase() &&
  isSameWindow(row, assignment);

/** The assignment that has this id already, or ASSIGNMENT_ID_TAKEN where it says something else. */
const selectRepeated = async (tx: Tx, assignment: NewAssignment): Promise<AssignmentRow | Refusal | undefined> => {
  const { assignmentId } = assignment;
  const row = await tx.maybeOne(selectAssignmentAnywhere(assignmentId));
  if (!row || isSameContent(row, assignment)) return row ?? undefined;
  return refusal("ASSIGNMENT_ID_TAKEN", { assignment_id: assignmentId });
};

/**
 * Assigns a role, and records it, where the transaction holds user, role and node.
 * @returns ASSIGNMENT_ID_TAKEN or INVALID_REQUEST (`end_time`), with nothing written.
 */
export const assignHeld = async (tx: Tx, call: Call, assignment: NewAssignment): Promise<AssignmentRow | Refusal> => {
  const row = await tx.maybeOne(insertAssignment(assignment));
  if (!row) return (await selectRepeated(tx, assignment)) ?? endTooEarly();
  await recordEvent(tx, call, assignmentEvent("org.assignment.create", row));
  return row;
};

export const assignmentHandlers = ({ db }: OrgParts) =>
  ({
    async assignRole(request, call) {
      const { tenantId, assignmentId = uuidv7(), userId, nodeId, roleId } = request;
      const assignment = { tenantId, assignmentId, userId, nodeId, roleId, ...readWindow(request) };
      const row = await transact(db, call, async (tx) => {
        // Before anything is held: a repeat is answered also once the user was erased or the role deleted.
        const answered =
          (request.assignmentId === undefined ? undefined : await selectRepeated(tx, assignment)) ??
          (await holdUser(tx, tenantId, userId)) ??
          (await holdRole(tx, tenantId, roleId)) ??
          (await holdNode(tx, tenantId, nodeId));
        return answered ?? assignHeld(tx, call, assignment);
      });
      return { assignment: assignmentMessage(row) };
    },

    async endAssignment({ tenantId, assignmentId, endTime }, call) {
      const row = await transact(db, call, async (tx) => {
        if (!(await tx.maybeOne(lockAssignment(tenantId, assignmentId)))) return notFound(assignmentId);
        const before = await tx.one(selectAssignment(tenantId, assignmentId));
        const window = endWindow(before, microsecondsOf(endTime), before.now_us);
        if (window === undefined) return before;
        if (window instanceof Refusal) return window;
        const after = await tx.one(updateAssignmentWindow(before, window));
        await recordEvent(tx, call, assignmentEvent("org.assignment.end", after));
        return after;
      });
      return { assignment: assignmentMessage(row) };
    },

    async getAssignment({ tenantId, assignmentId }, call) {
      const row = await read(db, call, (connection) => connection.maybeOne(selectAssignment(tenantId, assignmentId)));
      if (!row) throw notFound(assignmentId);
      return { assignment: assignmentMessage(row) };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
