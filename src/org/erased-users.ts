import { sql } from "slonik";
import { z } from "zod";
import { type Actors, type AuditEvent, recordEvents } from "../audit/record.ts";
import { BATCH } from "../db/batches.ts";
import type { Tx } from "../db/transact.ts";
import { assignmentEvent, assignmentRow } from "./assignments.ts";
import { invitationEvent } from "./invitations.ts";
import { grantEvent, grantRow } from "./visibility.ts";

/** Who is erased: a user whose row is locked, with the contacts that it had. */
interface ErasedUser {
  readonly tenant_id: string;
  readonly user_id: string;
  readonly email_addr: string | null;
  readonly phone_e164: string | null;
}

const invitationKeyRow = z.object({ tenant_id: z.string(), invite_id: z.string() });

// The time of the statement, which is after the lock: what began while the transaction waited has begun. An end comes
// after the start, so that of one that begins at this very microsecond is the next.
const endAssignments = ({ tenant_id, user_id }: ErasedUser) => sql.type(assignmentRow)`
  UPDATE org_assignments SET
    end_utc = CASE WHEN start_utc > statement_timestamp() THEN end_utc
      ELSE greatest(statement_timestamp(), start_utc + interval '1 microsecond') END,
    cancelled_utc = CASE WHEN start_utc > statement_timestamp() THEN statement_timestamp() END
  WHERE assignment_id = ANY (ARRAY(
    SELECT a.assignment_id FROM org_assignments a
    WHERE a.tenant_id = ${tenant_id}::uuid AND a.user_id = ${user_id}::uuid
      AND a.lasts_utc > statement_timestamp() + interval '1 microsecond'
    LIMIT ${BATCH}
  ))
  RETURNING assignment_id, tenant_id, user_id, org_node_id, role_id,
    (extract(epoch FROM start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM cancelled_utc) * 1000000)::bigint AS cancelled_us`;

const endGrants = ({ tenant_id, user_id }: ErasedUser) => sql.type(grantRow)`
  UPDATE visibility_grants SET
    end_utc = CASE WHEN start_utc > statement_timestamp() THEN end_utc
      ELSE greatest(statement_timestamp(), start_utc + interval '1 microsecond') END,
    cancelled_utc = CASE WHEN start_utc > statement_timestamp() THEN statement_timestamp() END
  WHERE grant_id = ANY (ARRAY(
    SELECT g.grant_id FROM visibility_grants g
    WHERE g.tenant_id = ${tenant_id}::uuid AND g.user_id = ${user_id}::uuid
      AND g.lasts_utc > statement_timestamp() + interval '1 microsecond'
    LIMIT ${BATCH}
  ))
  RETURNING grant_id, tenant_id, user_id, org_node_id, access_scope_code,
    (extract(epoch FROM start_utc) * 1000000)::bigint AS start_us,
    (extract(epoch FROM end_utc) * 1000000)::bigint AS end_us,
    (extract(epoch FROM cancelled_utc) * 1000000)::bigint AS cancelled_us`;

const clearedRow = invitationKeyRow.extend({ revoked: z.boolean() });

/**
 * Takes the contact from the invitations to the user's contacts, and from those that it accepted, perhaps under a former
 * one; what is open ends by the same statement, since one that is made meanwhile is seen by a later batch alone.
 */
const clearInvitations = ({ tenant_id, user_id, email_addr, phone_e164 }: ErasedUser) => sql.type(clearedRow)`
  UPDATE invitations i SET email_addr = NULL, phone_e164 = NULL,
    revoked_utc = CASE WHEN i.accepted_utc IS NULL AND i.revoked_utc IS NULL AND i.expiry_utc > statement_timestamp()
      THEN statement_timestamp() ELSE i.revoked_utc END
  WHERE i.invite_id = ANY (ARRAY(
    SELECT x.invite_id FROM invitations x WHERE x.tenant_id = ${tenant_id}::uuid AND x.email_addr = ${email_addr}::text
    UNION
    SELECT x.invite_id FROM invitations x WHERE x.tenant_id = ${tenant_id}::uuid AND x.phone_e164 = ${phone_e164}::text
    UNION
    SELECT x.invite_id FROM invitations x
    WHERE x.tenant_id = ${tenant_id}::uuid AND x.accepted_user_id = ${user_id}::uuid
      AND (x.email_addr IS NOT NULL OR x.phone_e164 IS NOT NULL)
    LIMIT ${BATCH}
  ))
  RETURNING i.tenant_id, i.invite_id, coalesce(i.revoked_utc = statement_timestamp(), false) AS revoked`;

/** Changes rows until there are none left, and records those that have an event. */
const recordEach = async <Row>(
  tx: Tx,
  call: Actors,
  next: () => Promise<readonly Row[]>,
  eventOf: (row: Row) => AuditEvent | undefined,
): Promise<void> => {
  for (;;) {
    const rows = await next();
    if (rows.length === 0) return;
    const events = rows.map(eventOf).filter((event) => event !== undefined);
    if (events.length > 0) await recordEvents(tx, call, events);
  }
};

/**
 * Ends all that an erased user may do: its assignments, its grants, and the open invitations to its contacts, each with an
 * event of its own. No invitation keeps a contact of it.
 */
export const endRights = async (tx: Tx, call: Actors, user: ErasedUser): Promise<void> => {
  await recordEach(
    tx,
    call,
    () => tx.any(endAssignments(user)),
    (row) => assignmentEvent("org.assignment.end", row),
  );
  await recordEach(
    tx,
    call,
    () => tx.any(endGrants(user)),
    (row) => grantEvent("org.visibility.revoke", row),
  );
  await recordEach(
    tx,
    call,
    () => tx.any(clearInvitations(user)),
    (row) => (row.revoked ? invitationEvent("org.invitation.revoke", row) : undefined),
  );
};
