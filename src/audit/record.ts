import { v7 as uuidv7 } from "uuid";
import { sql } from "slonik";
import { z } from "zod";
import { column } from "../db/columns.ts";
import { type Tx, queryAtEnd } from "../db/transact.ts";
import type { Call } from "../rpc/call.ts";

const auditIdRow = z.object({ audit_id: z.string() });

/** The kinds of things that events speak of. */
type EntityKind =
  | "service"
  | "tenant"
  | "user"
  | "session"
  | "node"
  | "capability"
  | "role"
  | "assignment"
  | "visibility_grant"
  | "invitation";

export interface AuditEvent {
  /** Dotted, `<package>.<noun>.<verb>`. */
  readonly action: string;
  readonly tenantId: string | undefined;
  readonly entityKind: EntityKind;
  readonly entityId: string;
  /** Ids, names of changed fields and values that are no personal data: it is never erased. No secret. */
  readonly payload?: Readonly<Record<string, string | number | boolean | readonly string[]>>;
}

/** The same for each event of a call. */
interface ActorIds {
  readonly userId: string | null;
  readonly serviceId: string | null;
}

const rowOf = (event: AuditEvent, requestId: string) => ({
  auditId: uuidv7(),
  tenantId: event.tenantId ?? null,
  action: event.action,
  entityKind: event.entityKind,
  entityId: event.entityId,
  payload: JSON.stringify({ ...event.payload, request_id: requestId }),
});
type AuditRow = ReturnType<typeof rowOf>;

// audit_pending is where the ordered stream of events takes them from, once they are committed.
const insertEvents = (actor: ActorIds, rows: readonly AuditRow[]) => sql.prepared("insert-events", auditIdRow)`
  WITH event AS (
    INSERT INTO audit_events (audit_id, tenant_id, actor_user_id, actor_svc_id, action_key, entity_kind_code, entity_id,
      occurred_utc, payload_json)
    SELECT r.audit_id, r.tenant_id, ${actor.userId}::uuid, ${actor.serviceId}::uuid, r.action_key, r.entity_kind_code,
      r.entity_id, clock_timestamp(), r.payload::jsonb
    FROM unnest(${sql.array(column(rows, "auditId"), "uuid")}, ${sql.array(column(rows, "tenantId"), "uuid")},
      ${sql.array(column(rows, "action"), "text")}, ${sql.array(column(rows, "entityKind"), "text")},
      ${sql.array(column(rows, "entityId"), "uuid")}, ${sql.array(column(rows, "payload"), "text")})
      AS r (audit_id, tenant_id, action_key, entity_kind_code, entity_id, payload)
    RETURNING audit_id
  )
  INSERT INTO audit_pending (audit_id) SELECT e.audit_id FROM event e RETURNING audit_id`;

/** Records all that one mutation did, by one statement, which goes with the commit. */
export const recordEvents = async (tx: Tx, call: Actors, events: readonly AuditEvent[]): Promise<void> => {
  const actor = { userId: call.actor?.userId ?? null, serviceId: call.callerIfAny?.serviceId ?? null };
  const rows = events.map((event) => rowOf(event, call.requestId));
  await queryAtEnd(tx, insertEvents(actor, rows));
};

/**
 * Records what a mutation did, in the mutation's own transaction: either both stand or neither.
 *
 * The calling service and, where it acts for a user, that user are recorded with it.
 */
export const recordEvent = (tx: Tx, call: Actors, event: AuditEvent): Promise<void> => recordEvents(tx, call, [event]);

/** Who acts: a call, or a command that has no caller. */
export type Actors = Pick<Call, "requestId" | "actor" | "callerIfAny">;
