import type { MessageInitShape } from "@bufbuild/protobuf";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { type AuditEvent, recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import { AccessScope, type OrgService, type VisibilityGrantSchema } from "../gen/org/v1/org_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";
import { microsecondsOf } from "../rpc/timestamps.ts";
import { holdNode, holdUser } from "./holds.ts";
import type { OrgParts } from "./parts.ts";
import { type ScopeCode, scopeCode } from "./visibility-checks.ts";
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

export const grantRow = z.object({
  grant_id: z.string(),
  tenant_id: z.string(),
  user_id: z.string(),
  org_node_id: z.string(),
  access_scope_code: z.enum(["read", "analyze"]),
  ...windowColumns,
});
type GrantRow = z.output<typeof grantRow>;

const grantIdRow = z.object({ grant_id: z.string() });

/** A grant to be made. Without a start it begins now. */
interface NewGrant extends WindowRequest {
  readonly tenantId: string;
  readonly grantId: string;
  readonly userId: string;
  readonly nodeId: string;
  readonly scope: ScopeCode;
}

const grantNowRow = grantRow.extend({ now_us: z.bigint() });
const selectGrant = (tenantId: string, grantId: string) => sql.type(grantNowRow)`
  SELECT g.grant_id, g.tenant_id, g.user_id, g.org_node_id, g.access_scope_code,
    (extract(epoch FROM g.start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM g.end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM g.cancelled_utc) * 1000000)::bigint AS cancelled_us,
    (extract(epoch FROM statement_timestamp()) * 1000000)::bigint AS now_us
  FROM visibility_grants g WHERE g.tenant_id = ${tenantId}::uuid AND g.grant_id = ${grantId}::uuid`;

/** Of any tenant: an id is unique without one. */
const selectGrantAnywhere = (grantId: string) => sql.type(grantRow)`
  SELECT g.grant_id, g.tenant_id, g.user_id, g.org_node_id, g.access_scope_code,
    (extract(epoch FROM g.start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM g.end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM g.cancelled_utc) * 1000000)::bigint AS cancelled_us
  FROM visibility_grants g WHERE g.grant_id = ${grantId}::uuid`;

/** Inserts nothing where the id is taken, or where the window would end before it begins. */
const insertGrant = (grant: NewGrant) => sql.type(grantRow)`
  INSERT INTO visibility_grants (grant_id, tenant_id, user_id, org_node_id, access_scope_code, start_utc, end_utc)
  SELECT ${grant.grantId}::uuid, ${grant.tenantId}::uuid, ${grant.userId}::uuid,
    ${grant.nodeId}::uuid, ${grant.scope}::text, w.start_utc, w.end_utc
  FROM (
    SELECT coalesce(${timeText(grant.startUs)}::timestamptz, statement_timestamp()) AS start_utc,
      ${timeText(grant.endUs)}::timestamptz AS end_utc
  ) w
  WHERE w.end_utc IS NULL OR w.end_utc > w.start_utc
  ON CONFLICT (grant_id) DO NOTHING
  RETURNING grant_id, tenant_id, user_id, org_node_id, access_scope_code,
    (extract(epoch FROM start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM cancelled_utc) * 1000000)::bigint AS cancelled_us`;

/** Locks a grant, and shares its user before it: an end that moves to later must not escape whoever ends all of a user. */
const lockGrant = (tenantId: string, grantId: string) => sql.type(grantIdRow)`
  SELECT g.grant_id FROM visibility_grants g JOIN users u ON u.user_id = g.user_id
  WHERE g.tenant_id = ${tenantId}::uuid AND g.grant_id = ${grantId}::uuid
  FOR KEY SHARE OF u FOR NO KEY UPDATE OF g`;

const updateGrantWindow = ({ tenant_id, grant_id }: GrantRow, { end_us, cancelled_us }: WindowRow) =>
  sql.type(grantRow)`
  UPDATE visibility_grants SET end_utc = ${timeText(end_us)}::timestamptz, cancelled_utc = ${timeText(cancelled_us)}::timestamptz
  WHERE tenant_id = ${tenant_id}::uuid AND grant_id = ${grant_id}::uuid
  RETURNING grant_id, tenant_id, user_id, org_node_id, access_scope_code,
    (extract(epoch FROM start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM cancelled_utc) * 1000000)::bigint AS cancelled_us`;

const SCOPES = { read: AccessScope.READ, analyze: AccessScope.ANALYZE } as const;

export const grantMessage = (row: GrantRow): MessageInitShape<typeof VisibilityGrantSchema> => ({
  grantId: row.grant_id,
  tenantId: row.tenant_id,
  userId: row.user_id,
  nodeId: row.org_node_id,
  scope: SCOPES[row.access_scope_code],
  ...windowMessage(row),
});

const notFound = (grantId: string) => refusal("VISIBILITY_GRANT_NOT_FOUND", { grant_id: grantId });

/** The event of a change to a grant, which says what has become of it. */
export const grantEvent = (action: string, row: GrantRow): AuditEvent => ({
  action,
  tenantId: row.tenant_id,
  entityKind: "visibility_grant",
  entityId: row.grant_id,
  payload: { user_id: row.user_id, node_id: row.org_node_id, scope: row.access_scope_code, ...windowPayload(row) },
});

const isSameContent = (row: GrantRow, grant: NewGrant) =>
  row.tenant_id === grant.tenantId.toLowerCase() &&
  row.user_id === grant.userId.toLowerCase() &&
  row.org_node_id === grant.nodeId.toLowerCase() &&
  row.access_scope_code === grant.scope &&
  isSameWindow(row, grant);

/** The grant that has this id already, or VISIBILITY_GRANT_ID_TAKEN where it says something else. */
const selectRepeated = async (tx: Tx, grant: NewGrant): Promise<GrantRow | Refusal | undefined> => {
  const { grantId } = grant;
  const row = await tx.maybeOne(selectGrantAnywhere(grantId));
  if (!row || isSameContent(row, grant)) return row ?? undefined;
  return refusal("VISIBILITY_GRANT_ID_TAKEN", { grant_id: grantId });
};

/** Grants once nothing has the id yet. Refuses before anything is written. */
const insertHeld = async (tx: Tx, call: Call, grant: NewGrant): Promise<GrantRow | Refusal> => {
  const { tenantId, userId, nodeId } = grant;
  const missing = (await holdUser(tx, tenantId, userId)) ?? (await holdNode(tx, tenantId, nodeId));
  if (missing) return missing;
  const row = await tx.maybeOne(insertGrant(grant));
  if (!row) return (await selectRepeated(tx, grant)) ?? endTooEarly();
  await recordEvent(tx, call, grantEvent("org.visibility.grant", row));
  return row;
};

export const visibilityHandlers = ({ db }: OrgParts) =>
  ({
    async grantVisibility(request, call) {
      const { tenantId, grantId = uuidv7(), userId, nodeId } = request;
      const grant = { tenantId, grantId, userId, nodeId, scope: scopeCode(request.scope), ...readWindow(request) };
      const row = await transact(db, call, async (tx) => {
        // Before anything is held: a repeat is answered also once the user was erased.
        const repeated = request.grantId === undefined ? undefined : await selectRepeated(tx, grant);
        return repeated ?? insertHeld(tx, call, grant);
      });
      return { grant: grantMessage(row) };
    },

    async revokeVisibility({ tenantId, grantId, endTime }, call) {
      const row = await transact(db, call, async (tx) => {
        if (!(await tx.maybeOne(lockGrant(tenantId, grantId)))) return notFound(grantId);
        const before = await tx.one(selectGrant(tenantId, grantId));
        const window = endWindow(before, microsecondsOf(endTime), before.now_us);
        if (window === undefined) return before;
        if (window instanceof Refusal) return window;
        const after = await tx.one(updateGrantWindow(before, window));
        await recordEvent(tx, call, grantEvent("org.visibility.revoke", after));
        return after;
      });
      return { grant: grantMessage(row) };
    },

    async getVisibilityGrant({ tenantId, grantId }, call) {
      const row = await read(db, call, (connection) => connection.maybeOne(selectGrant(tenantId, grantId)));
      if (!row) throw notFound(grantId);
      return { grant: grantMessage(row) };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
