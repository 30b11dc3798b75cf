import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type CommonQueryMethods, sql } from "slonik";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import {
  ListServicesRequestSchema,
  type ServiceIdentityService,
  type ServiceSchema,
  ServiceState,
} from "../gen/service_identity/v1/service_identity_pb.ts";
import type { Call } from "../rpc/call.ts";
import { checkTenant, ownTenant } from "../rpc/caller.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readPage } from "../rpc/page.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";
import { maskedFields } from "../rpc/update-mask.ts";
import { escalation } from "./escalation.ts";
import type { ServiceIdentityParts } from "./parts.ts";
import { svcIdRow } from "./rows.ts";

const serviceRow = z.object({
  svc_id: z.string(),
  tenant_id: z.string().nullable(),
  svc_key: z.string(),
  svc_label: z.string(),
  svc_state_code: z.enum(["active", "disabled"]),
  created_utc: z.number(),
  perm_keys: z.array(z.string()),
});
export type ServiceRow = z.output<typeof serviceRow>;
type StateCode = ServiceRow["svc_state_code"];

/** @param own the tenant beyond which the caller sees nothing. */
export const selectService = (serviceId: string, own: string | null) => sql.type(serviceRow)`
  SELECT s.svc_id, s.tenant_id, s.svc_key, s.svc_label, s.svc_state_code, s.created_utc,
    ARRAY(SELECT p.perm_key FROM service_permissions p WHERE p.svc_id = s.svc_id ORDER BY p.perm_key COLLATE "C") AS perm_keys
  FROM services s
  WHERE (${own}::uuid IS NULL OR s.tenant_id = ${own}::uuid) AND s.svc_id = ${serviceId}::uuid`;

const selectServiceByKey = (key: string, own: string | null) => sql.type(serviceRow)`
  SELECT s.svc_id, s.tenant_id, s.svc_key, s.svc_label, s.svc_state_code, s.created_utc,
    ARRAY(SELECT p.perm_key FROM service_permissions p WHERE p.svc_id = s.svc_id ORDER BY p.perm_key COLLATE "C") AS perm_keys
  FROM services s
  WHERE (${own}::uuid IS NULL OR s.tenant_id = ${own}::uuid) AND s.svc_key = ${key}`;

const listedServiceRow = serviceRow.extend({ has_next: z.boolean() });

/** Permissions on a page, 128 bytes each at most: it stays below the 4 MiB that gRPC clients take. */
const PAGE_PERMISSIONS_MAX = 20_000;

/** As many as have at most PAGE_PERMISSIONS_MAX permissions together, and always the first: no others are read. */
export const selectServices = (tenantId: string | null, state: StateCode | null, after: string | null, size: number) =>
  sql.type(listedServiceRow)`
  WITH counted AS (
    SELECT s.svc_id, s.tenant_id, s.svc_key, s.svc_label, s.svc_state_code, s.created_utc,
      row_number() OVER by_id AS position,
      sum((SELECT count(*) FROM service_permissions p WHERE p.svc_id = s.svc_id)) OVER by_id AS perm_total,
      coalesce(lead(true) OVER by_id, false) AS has_next
    FROM services s
    WHERE (${tenantId}::uuid IS NULL OR s.tenant_id = ${tenantId}::uuid)
      AND (${state}::text IS NULL OR s.svc_state_code = ${state}::text)
      AND (${after}::uuid IS NULL OR s.svc_id > ${after}::uuid)
    WINDOW by_id AS (ORDER BY s.svc_id)
    ORDER BY s.svc_id
    LIMIT ${size}
  )
  SELECT s.svc_id, s.tenant_id, s.svc_key, s.svc_label, s.svc_state_code, s.created_utc,
    ARRAY(SELECT p.perm_key FROM service_permissions p WHERE p.svc_id = s.svc_id ORDER BY p.perm_key COLLATE "C") AS perm_keys,
    s.has_next
  FROM counted s
  WHERE s.position = 1 OR s.perm_total <= ${PAGE_PERMISSIONS_MAX}
  ORDER BY s.svc_id`;

const lockService = (serviceId: string, own: string | null) => sql.type(svcIdRow)`
  SELECT s.svc_id FROM services s
  WHERE s.svc_id = ${serviceId}::uuid AND (${own}::uuid IS NULL OR s.tenant_id = ${own}::uuid)
  FOR NO KEY UPDATE`;

export const insertService = (serviceId: string, tenantId: string | null, key: string, label: string) =>
  sql.type(svcIdRow)`
  INSERT INTO services (svc_id, tenant_id, svc_key, svc_label, svc_state_code)
  VALUES (${serviceId}::uuid, ${tenantId}::uuid, ${key}, ${label}, 'active')
  ON CONFLICT DO NOTHING
  RETURNING svc_id`;

const updateServiceLabel = (serviceId: string, label: string) => sql.type(svcIdRow)`
  UPDATE services SET svc_label = ${label} WHERE svc_id = ${serviceId}::uuid RETURNING svc_id`;

export const updateServiceState = (serviceId: string, state: StateCode) => sql.type(svcIdRow)`
  UPDATE services SET svc_state_code = ${state} WHERE svc_id = ${serviceId}::uuid RETURNING svc_id`;

const STATES = { active: ServiceState.ACTIVE, disabled: ServiceState.DISABLED } as const;

const stateCode = (state: ServiceState | undefined): StateCode | null =>
  state === undefined ? null : state === ServiceState.ACTIVE ? "active" : "disabled";

export const serviceMessage = (row: ServiceRow): MessageInitShape<typeof ServiceSchema> => ({
  serviceId: row.svc_id,
  ...(row.tenant_id !== null && { tenantId: row.tenant_id }),
  key: row.svc_key,
  label: row.svc_label,
  state: STATES[row.svc_state_code],
  permissions: row.perm_keys,
  createTime: timestampFromMs(row.created_utc),
});

/** The event of a change to a service; its tenant is the service's. */
export const serviceEvent = (action: string, row: Pick<ServiceRow, "svc_id" | "tenant_id">) =>
  ({ action, tenantId: row.tenant_id ?? undefined, entityKind: "service", entityId: row.svc_id }) as const;

const notFound = (metadata: Record<string, string>) => refusal("SERVICE_NOT_FOUND", metadata);

/** Holds an actor to the tenant of the service that a request is about, since the request names none. */
export const heldTo = <Row extends Pick<ServiceRow, "tenant_id">>({ caller, actor }: Call, row: Row): Row => {
  checkTenant(caller, actor, row.tenant_id ?? undefined);
  return row;
};

/** Reads a service that the caller can see. */
export const visibleService = async (db: CommonQueryMethods, call: Call, serviceId: string) => {
  const row = await db.maybeOne(selectService(serviceId, ownTenant(call)));
  return row ? heldTo(call, row) : notFound({ service_id: serviceId });
};

/**
 * Locks the service that a mutation is about, and holds the caller to it: it must see the service, and its token must
 * cover every permission that the service has and would get.
 */
export const lockTarget = async (
  tx: Tx,
  call: Call,
  serviceId: string,
  granted: readonly string[] = [],
): Promise<ServiceRow | Refusal> => {
  const locked = await tx.maybeOne(lockService(serviceId, ownTenant(call)));
  if (!locked) return notFound({ service_id: serviceId });
  const target = heldTo(call, await tx.one(selectService(serviceId, ownTenant(call))));
  return escalation(call.caller.permissions, granted, target.perm_keys) ?? target;
};

export const serviceHandlers = ({ db }: ServiceIdentityParts) =>
  ({
    async getService({ selector }, call) {
      const { value = "" } = selector;
      const byKey = selector.case === "key";
      const select = byKey ? selectServiceByKey(value, ownTenant(call)) : selectService(value, ownTenant(call));
      const row = await read(db, call, (connection) => connection.maybeOne(select));
      if (!row) throw notFound(byKey ? { key: value } : { service_id: value });
      return { service: serviceMessage(heldTo(call, row)) };
    },

    async listServices(request, call) {
      const page = readPage(ListServicesRequestSchema, request, z.guid());
      const list = selectServices(request.tenantId ?? null, stateCode(request.state), page.after ?? null, page.size);
      const rows = await read(db, call, (connection) => connection.any(list));
      const last = rows.at(-1);
      return { services: rows.map(serviceMessage), nextPageToken: last?.has_next ? page.tokenAfter(last.svc_id) : "" };
    },

    async updateService({ serviceId, label, updateMask }, call) {
      const fields = maskedFields(updateMask, { label }, ["label"]);
      const service = await transact(db, call, async (tx) => {
        const target = await lockTarget(tx, call, serviceId);
        if (target instanceof Refusal || !fields.has("label") || target.svc_label === label) return target;
        await tx.one(updateServiceLabel(serviceId, label));
        await recordEvent(tx, call, { ...serviceEvent("service.update", target), payload: { fields: ["label"] } });
        return { ...target, svc_label: label };
      });
      return { service: serviceMessage(service) };
    },
  }) satisfies Partial<Handlers<typeof ServiceIdentityService>>;
