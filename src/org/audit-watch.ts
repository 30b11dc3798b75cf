import type { MessageInitShape } from "@bufbuild/protobuf";
import { type CommonQueryMethods, sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import type { OrgService, WatchAuditEventsResponseSchema } from "../gen/org/v1/org_pb.ts";
import { type Call, waitingUntil } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { invalid, refusal } from "../rpc/refusal.ts";
import { auditEventMessage, auditEventRow } from "./audit-events.ts";
import type { OrgParts } from "./parts.ts";

const headRow = z.object({ position_val: z.bigint(), audit_id: z.string().nullable() });
const positionRow = z.object({ audit_id: z.string(), position_val: z.bigint().nullable(), pending: z.boolean() });

/** The event after which a watch goes on; it has no id where none had a position yet. */
type Place = z.output<typeof headRow>;

// Events that a watcher has in memory at most: they wait for a slow one here, and all others in the database.
const PAGE = 100;
// How long a watch waits for the position of an event after which it shall begin, in milliseconds: it takes a moment,
// save behind a backlog.
const PENDING_MAX_MS = 10_000;

const orderedRow = auditEventRow.extend({ position_val: z.bigint() });
type OrderedRow = z.output<typeof orderedRow>;

const selectHead = () => sql.type(headRow)`
  SELECT h.position_val, o.audit_id FROM audit_head h LEFT JOIN audit_order o ON o.position_val = h.position_val`;

const selectPosition = (auditId: string, tenantId: string | null) =>
  sql.type(positionRow)`
  SELECT e.audit_id, o.position_val, EXISTS (SELECT 1 FROM audit_pending p WHERE p.audit_id = e.audit_id) AS pending
  FROM audit_events e
  LEFT JOIN audit_order o ON o.audit_id = e.audit_id
  WHERE e.audit_id = ${auditId}::uuid AND (${tenantId}::uuid IS NULL OR e.tenant_id = ${tenantId}::uuid)`;

/** The event at the place itself comes first, whosever it is. */
const selectAll = (position: bigint) => sql.type(orderedRow)`
  SELECT o.position_val, e.audit_id, e.tenant_id, e.actor_user_id, e.actor_svc_id, e.action_key, e.entity_kind_code,
    e.entity_id, (extract(epoch FROM e.occurred_utc) * 1000000)::bigint AS occurred_us, e.payload_json
  FROM audit_order o JOIN audit_events e ON e.audit_id = o.audit_id
  WHERE o.position_val >= ${position}::bigint
  ORDER BY o.position_val
  LIMIT ${PAGE + 1}`;

const selectOfTenant = (tenantId: string, position: bigint) => sql.type(orderedRow)`
  WITH page AS (
    SELECT o.position_val, o.audit_id FROM audit_order o WHERE o.position_val = ${position}::bigint
    UNION ALL
    (SELECT o.position_val, o.audit_id FROM audit_order o
    WHERE o.tenant_id = ${tenantId}::uuid AND o.position_val > ${position}::bigint
    ORDER BY o.position_val
    LIMIT ${PAGE})
  )
  SELECT p.position_val, e.audit_id, e.tenant_id, e.actor_user_id, e.actor_svc_id, e.action_key, e.entity_kind_code,
    e.entity_id, (extract(epoch FROM e.occurred_utc) * 1000000)::bigint AS occurred_us, e.payload_json
  FROM page p JOIN audit_events e ON e.audit_id = p.audit_id
  ORDER BY p.position_val`;

/**
 * Who goes on after an event that the database has lost, as by a fail-over, would miss what has its position now: resuming
 * after it is refused.
 */
const eventsAfterPlace = (place: Place, rows: readonly OrderedRow[]) => {
  if (place.audit_id !== null && rows[0]?.audit_id !== place.audit_id) throw refusal("STREAM_ENDED");
  return rows.filter(({ position_val }) => position_val > place.position_val);
};

const notOfStream = () => invalid({ field: "after_audit_id", description: "is no event of this stream" });

export const auditWatchHandlers = ({ db, auditHead }: Pick<OrgParts, "db" | "auditHead">) => {
  /** Where the watch begins; waits for an event that has no position yet. */
  const placeOf = async (auditId: string, tenantId: string | undefined, call: Call): Promise<Place> => {
    const late = AbortSignal.timeout(PENDING_MAX_MS);
    const waiting = waitingUntil(AbortSignal.any([call.signal, late]));
    for (;;) {
      // Read before the statement is sent: what it does not see yet is behind this position.
      const known = auditHead.position();
      const select = selectPosition(auditId, tenantId ?? null);
      const event = await read(db, call, (connection) => connection.maybeOne(select));
      if (event && event.position_val !== null) return { audit_id: event.audit_id, position_val: event.position_val };
      if (!event?.pending) throw notOfStream();
      await auditHead.movedPast(known, tenantId, waiting).catch((error: unknown) => {
        throw late.aborted ? refusal("OVERLOADED") : error;
      });
    }
  };

  const pageAfter =
    ({ position_val: position }: Place, tenantId: string | undefined) =>
    (connection: CommonQueryMethods) =>
      connection.any(tenantId === undefined ? selectAll(position) : selectOfTenant(tenantId, position));

  async function* eventsAfter(
    start: Place,
    tenantId: string | undefined,
    call: Call,
  ): AsyncGenerator<MessageInitShape<typeof WatchAuditEventsResponseSchema>> {
    for (let place = start; ;) {
      const known = auditHead.position();
      const events = eventsAfterPlace(place, await read(db, call, pageAfter(place, tenantId)));
      for (const event of events) {
        place = event;
        yield { event: auditEventMessage(event) };
      }
      if (events.length < PAGE) await auditHead.movedPast(known, tenantId, call);
    }
  }

  return {
    async watchAuditEvents({ afterAuditId, ...request }, call) {
      // As the database writes it, which is how the head names tenants.
      const tenantId = request.tenantId?.toLowerCase();
      const start =
        afterAuditId === undefined
          ? await read(db, call, (connection) => connection.one(selectHead()))
          : await placeOf(afterAuditId, tenantId, call);
      return eventsAfter(start, tenantId, call);
    },
  } satisfies Partial<Handlers<typeof OrgService>>;
};
