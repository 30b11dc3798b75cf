import type { JsonObject, JsonValue, MessageInitShape } from "@bufbuild/protobuf";
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import {
  type AuditEventSchema,
  type ListAuditEventsRequest,
  ListAuditEventsRequestSchema,
  type OrgService,
} from "../gen/org/v1/org_pb.ts";
import { CANDIDATES, candidateColumns, isLastCandidate } from "../rpc/candidates.ts";
import type { Handlers } from "../rpc/methods.ts";
import { type Page, type Weight, fitting, microseconds, readPage } from "../rpc/page.ts";
import { microsecondsRoundedUp, timestampOf } from "../rpc/timestamps.ts";
import type { OrgParts } from "./parts.ts";

// Of payloads on a page, as JSON; an event has 256 KiB at most. It stays below the 4 MiB that gRPC clients take.
const PAGE_PAYLOAD_BYTES = 2 ** 21;

/** What an event's message is made of. */
export const auditEventRow = z.object({
  audit_id: z.string(),
  tenant_id: z.string().nullable(),
  actor_user_id: z.string().nullable(),
  actor_svc_id: z.string().nullable(),
  action_key: z.string(),
  entity_kind_code: z.string(),
  entity_id: z.string().nullable(),
  occurred_us: z.bigint(),
  payload_json: z.unknown(),
});
const eventRow = auditEventRow.extend({ ...candidateColumns, has_next: z.boolean() });
type EventRow = z.output<typeof eventRow>;

const eventKey = z.tuple([microseconds, z.guid()]);
type EventKey = z.output<typeof eventKey>;

interface Filter {
  readonly tenantId: string | null;
  readonly entityId: string | null;
  readonly actorUserId: string | null;
  readonly action: string | null;
  readonly entityKind: string | null;
  readonly after: string | null;
  readonly before: string | null;
}

/** As many as have at most PAGE_PAYLOAD_BYTES together, and always the first. */
const selectEvents = (filter: Filter, [afterUs, afterId]: EventKey | [null, null], size: number) => sql.type(eventRow)`
  WITH candidates AS (
    SELECT a.audit_id, a.tenant_id, a.actor_user_id, a.actor_svc_id, a.action_key, a.entity_kind_code, a.entity_id,
      a.occurred_utc, a.payload_json,
      (${filter.action}::text IS NULL OR a.action_key = ${filter.action}::text)
        AND (${filter.entityKind}::text IS NULL OR a.entity_kind_code = ${filter.entityKind}::text)
        AND (${filter.actorUserId}::uuid IS NULL OR coalesce(a.actor_user_id = ${filter.actorUserId}::uuid, false))
        AS matches,
      row_number() OVER (ORDER BY a.occurred_utc DESC, a.audit_id DESC) AS position
    FROM audit_events a
    WHERE (${filter.tenantId}::uuid IS NULL OR a.tenant_id = ${filter.tenantId}::uuid)
      AND (${filter.entityId}::uuid IS NULL OR a.entity_id = ${filter.entityId}::uuid)
      AND (${filter.entityId}::uuid IS NOT NULL OR ${filter.actorUserId}::uuid IS NULL
        OR a.actor_user_id = ${filter.actorUserId}::uuid)
      AND (${filter.after}::bigint IS NULL
        OR a.occurred_utc >= 'epoch'::timestamptz + ${filter.after}::bigint * interval '1 microsecond')
      AND (${filter.before}::bigint IS NULL
        OR a.occurred_utc < 'epoch'::timestamptz + ${filter.before}::bigint * interval '1 microsecond')
      AND (${afterId}::uuid IS NULL OR (a.occurred_utc, a.audit_id) <
        ('epoch'::timestamptz + ${afterUs}::bigint * interval '1 microsecond', ${afterId}::uuid))
    ORDER BY a.occurred_utc DESC, a.audit_id DESC
    LIMIT ${CANDIDATES}
  ), weighed AS (
    SELECT c.audit_id, c.tenant_id, c.actor_user_id, c.actor_svc_id, c.action_key, c.entity_kind_code, c.entity_id,
      c.occurred_utc, c.payload_json, c.matches, c.position, row_number() OVER in_order AS place,
      sum(coalesce(octet_length(c.payload_json::text), 0)) OVER in_order AS payload_bytes,
      coalesce(lead(true) OVER in_order, false) AS has_next
    FROM candidates c
    WHERE c.matches OR c.position = ${CANDIDATES}
    WINDOW in_order AS (ORDER BY c.position)
    ORDER BY c.position
    LIMIT ${size}
  )
  SELECT w.audit_id, w.tenant_id, w.actor_user_id, w.actor_svc_id, w.action_key, w.entity_kind_code, w.entity_id,
    (extract(epoch FROM w.occurred_utc) * 1000000)::bigint AS occurred_us, w.payload_json, w.matches, w.position,
    w.has_next
  FROM weighed w
  WHERE w.place = 1 OR w.payload_bytes <= ${PAGE_PAYLOAD_BYTES}
  ORDER BY w.position`;

const boundOf = (time: Timestamp | undefined): string | null => (time ? String(microsecondsRoundedUp(time)) : null);

// Of values in values: a level is up to three messages in each other, of which clients decode a hundred.
const LEVELS_MAX = 30;

/**
 * As a Struct holds it. A jsonb's number may be beyond a double's, and is read as infinite, which JSON has no word for; of
 * what stands too deep to be decoded it says no more than that.
 */
const told = (json: JsonValue, level = 1): JsonValue => {
  if (typeof json === "number") return Math.min(Math.max(json, -Number.MAX_VALUE), Number.MAX_VALUE);
  if (typeof json !== "object" || json === null) return json;
  if (level > LEVELS_MAX) return "…";
  if (Array.isArray(json)) return json.map((value) => told(value, level + 1));
  return Object.fromEntries(Object.entries(json).map(([name, value]) => [name, told(value, level + 1)]));
};

const isObject = (json: JsonValue): json is JsonObject =>
  typeof json === "object" && json !== null && !Array.isArray(json);

/** An object in each event of ours; another JSON value, from a bulk load, stands under `value`. */
const payloadOf = (payload: unknown): JsonObject => {
  // The column holds JSON and nothing else.
  const json = told((payload ?? {}) as JsonValue);
  return isObject(json) ? json : { value: json };
};

export const auditEventMessage = (row: z.output<typeof auditEventRow>): MessageInitShape<typeof AuditEventSchema> => ({
  auditId: row.audit_id,
  ...(row.tenant_id !== null && { tenantId: row.tenant_id }),
  ...(row.actor_user_id !== null && { actorUserId: row.actor_user_id }),
  ...(row.actor_svc_id !== null && { actorServiceId: row.actor_svc_id }),
  action: row.action_key,
  entityKind: row.entity_kind_code,
  ...(row.entity_id !== null && { entityId: row.entity_id }),
  occurTime: timestampOf(row.occurred_us),
  payload: payloadOf(row.payload_json),
});

const filterOf = (request: ListAuditEventsRequest): Filter => ({
  tenantId: request.tenantId ?? null,
  entityId: request.entityId ?? null,
  actorUserId: request.actorUserId ?? null,
  action: request.action ?? null,
  entityKind: request.entityKind ?? null,
  after: boundOf(request.after),
  before: boundOf(request.before),
});

/** Down to where an event tells them. */
const numbersIn = (json: JsonValue, level = 1): number => {
  if (typeof json === "number") return 1;
  if (typeof json !== "object" || json === null || level > LEVELS_MAX) return 0;
  return Object.values(json).reduce<number>((sum, value) => sum + numbersIn(value, level + 1), 0);
};

/** Numbers on a page: a Struct has eight bytes more for each than JSON, in which a digit and a comma are one. */
const PAGE_WEIGHT: Weight<EventRow> = {
  of: ({ payload_json: payload }) => numbersIn((payload ?? {}) as JsonValue),
  max: 200_000,
};

const keyOf = (row: EventRow): EventKey => [String(row.occurred_us), row.audit_id];

/** A full page goes on after its last event, a short one after the last that it looked at. */
const cutWindow = (page: Page<EventKey>, found: readonly EventRow[]) => {
  const rows = found.slice(0, fitting(found, PAGE_WEIGHT));
  const events = rows.filter(({ matches }) => matches);
  const last = rows.at(-1);
  if (last === undefined || (!last.has_next && !isLastCandidate(last))) return { events, nextPageToken: "" };
  return { events, nextPageToken: page.tokenAfter(keyOf(last)) };
};

export const auditEventHandlers = ({ db }: OrgParts) =>
  ({
    async listAuditEvents(request, call) {
      const page = readPage(ListAuditEventsRequestSchema, request, eventKey);
      const list = selectEvents(filterOf(request), page.after ?? [null, null], page.size);
      const { events, nextPageToken } = cutWindow(page, await read(db, call, (connection) => connection.any(list)));
      return { events: events.map(auditEventMessage), nextPageToken };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
