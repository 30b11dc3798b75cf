import { v7 as uuidv7 } from "uuid";
import { sql } from "slonik";
import { z } from "zod";
import type { Tx } from "../db/transact.ts";
import type { Call } from "../rpc/call.ts";

/** The kinds of things that events speak of. */
export type EntityKind = "service" | "tenant" | "user" | "session";

export interface AuditEvent {
  /** Dotted, `<package>.<noun>.<verb>`; api.md's table of the record has them all. */
  readonly action: string;
  readonly tenantId: string | undefined;
  readonly entityKind: EntityKind;
  readonly entityId: string;
  /** Ids, names of changed fields and values that are no personal data: it is never erased. No secret. */
  readonly payload?: Readonly<Record<string, string | number | boolean | readonly string[]>>;
}

interface AuditRow {
  readonly auditId: string;
  readonly tenantId: string | null;
  readonly actorUserId: string | null;
  readonly actorServiceId: string | null;
  readonly action: string;
  readonly entityKind: EntityKind;
  readonly entityId: string;
  readonly payload: string;
}

// audit_pending is where the ordered stream of events takes them from, once they are committed.
const insertEvent = (row: AuditRow) => sql.type(z.object({ audit_id: z.string() }))`
  WITH event AS (
    INSERT INTO audit_events (audit_id, tenant_id, actor_user_id, actor_svc_id, action_key, entity_kind_code, entity_id,
      occurred_utc, payload_json)
    VALUES (${row.auditId}::uuid, ${row.tenantId}::uuid, ${row.actorUserId}::uuid, ${row.actorServiceId}::uuid,
      ${row.action}, ${row.entityKind}, ${row.entityId}::uuid, clock_timestamp(), ${row.payload}::jsonb)
    RETURNING audit_id
  )
  INSERT INTO audit_pending (audit_id) SELECT e.audit_id FROM event e RETURNING audit_id`;

/**
 * Records what a mutation did, in the mutation's own transaction: either both stand or neither.
 *
 * The calling service and, where it acts for a user, that user are recorded with it.
 */
export const recordEvent = async (tx: Tx, call: Actors, event: AuditEvent): Promise<void> => {
  await tx.one(
    insertEvent({
      auditId: uuidv7(),
      tenantId: event.tenantId ?? null,
      actorUserId: call.actor?.userId ?? null,
      actorServiceId: call.callerIfAny?.serviceId ?? null,
      action: event.action,
      entityKind: event.entityKind,
      entityId: event.entityId,
      payload: JSON.stringify({ ...event.payload, request_id: call.requestId }),
    }),
  );
};

/** Who acts: a call, or a command that has no caller. */
export type Actors = Pick<Call, "requestId" | "actor" | "callerIfAny">;
