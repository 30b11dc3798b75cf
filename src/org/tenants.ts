import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import { ListTenantsRequestSchema, type OrgService, type TenantSchema, TenantState } from "../gen/org/v1/org_pb.ts";
import type { Call } from "../rpc/call.ts";
import { checkTenant, ownTenant, requireTenantless } from "../rpc/caller.ts";
import type { Handlers } from "../rpc/methods.ts";
import { cutPage, readPage } from "../rpc/page.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import { maskedFields } from "../rpc/update-mask.ts";
import type { OrgParts } from "./parts.ts";

const tenantRow = z.object({
  tenant_id: z.string(),
  tenant_label: z.string(),
  tenant_state_code: z.enum(["active", "suspended"]),
  created_utc: z.number(),
});
type TenantRow = z.output<typeof tenantRow>;
type StateCode = TenantRow["tenant_state_code"];

const insertTenant = (tenantId: string, label: string) => sql.type(tenantRow)`
  INSERT INTO tenants (tenant_id, tenant_label, tenant_state_code) VALUES (${tenantId}::uuid, ${label}, 'active')
  ON CONFLICT (tenant_id) DO NOTHING
  RETURNING tenant_id, tenant_label, tenant_state_code, created_utc`;

const selectTenant = (tenantId: string) => sql.type(tenantRow)`
  SELECT t.tenant_id, t.tenant_label, t.tenant_state_code, t.created_utc
  FROM tenants t WHERE t.tenant_id = ${tenantId}::uuid`;

const tenantStateRow = tenantRow.pick({ tenant_state_code: true });
type TenantStateRow = z.output<typeof tenantStateRow>;

export const selectTenantState = (tenantId: string) => sql.prepared("select-tenant-state", tenantStateRow)`
  SELECT t.tenant_state_code FROM tenants t WHERE t.tenant_id = ${tenantId}::uuid`;

const lockTenant = (tenantId: string) => sql.type(tenantRow)`
  SELECT t.tenant_id, t.tenant_label, t.tenant_state_code, t.created_utc
  FROM tenants t WHERE t.tenant_id = ${tenantId}::uuid FOR NO KEY UPDATE`;

const selectTenants = (own: string | null, state: StateCode | null, after: string | null, limit: number) =>
  sql.type(tenantRow)`
  SELECT t.tenant_id, t.tenant_label, t.tenant_state_code, t.created_utc
  FROM tenants t
  WHERE (${own}::uuid IS NULL OR t.tenant_id = ${own}::uuid)
    AND (${state}::text IS NULL OR t.tenant_state_code = ${state}::text)
    AND (${after}::uuid IS NULL OR t.tenant_id > ${after}::uuid)
  ORDER BY t.tenant_id
  LIMIT ${limit}`;

const updateTenantLabel = (tenantId: string, label: string) => sql.type(tenantRow)`
  UPDATE tenants SET tenant_label = ${label} WHERE tenant_id = ${tenantId}::uuid
  RETURNING tenant_id, tenant_label, tenant_state_code, created_utc`;

const updateTenantState = (tenantId: string, state: StateCode) => sql.type(tenantRow)`
  UPDATE tenants SET tenant_state_code = ${state} WHERE tenant_id = ${tenantId}::uuid
  RETURNING tenant_id, tenant_label, tenant_state_code, created_utc`;

const STATES = { active: TenantState.ACTIVE, suspended: TenantState.SUSPENDED } as const;

const stateCode = (state: TenantState | undefined): StateCode | null =>
  state === undefined ? null : state === TenantState.ACTIVE ? "active" : "suspended";

const tenantMessage = (row: TenantRow): MessageInitShape<typeof TenantSchema> => ({
  tenantId: row.tenant_id,
  label: row.tenant_label,
  state: STATES[row.tenant_state_code],
  createTime: timestampFromMs(row.created_utc),
});

/** The event of a change to a tenant. */
const tenantEvent = (action: string, tenantId: string) =>
  ({ action, tenantId, entityKind: "tenant", entityId: tenantId }) as const;

export const tenantNotFound = (tenantId: string) => refusal("TENANT_NOT_FOUND", { tenant_id: tenantId });

/** Answers with TENANT_NOT_FOUND where there is none. */
export const missingTenant = async (tx: Tx, tenantId: string): Promise<Refusal | undefined> =>
  (await tx.maybeOne(selectTenant(tenantId))) ? undefined : tenantNotFound(tenantId);

/**
 * The tenant that somebody signs in to or asks a code of.
 * @param row what was found of it, perhaps with more than its state
 * @throws TENANT_NOT_FOUND, TENANT_SUSPENDED
 */
export const activeTenant = <T extends TenantStateRow>(tenantId: string, row: T | null | undefined): T => {
  if (!row) throw tenantNotFound(tenantId);
  if (row.tenant_state_code === "suspended") throw refusal("TENANT_SUSPENDED", { tenant_id: tenantId });
  return row;
};

export const tenantHandlers = ({ db, forgetTokens }: OrgParts) => {
  const setState = async (tenantId: string, state: StateCode, action: string, call: Call) => {
    requireTenantless(call);
    const change = async (tx: Tx) => {
      const before = await tx.maybeOne(lockTenant(tenantId));
      if (!before) return tenantNotFound(tenantId);
      if (before.tenant_state_code === state) return before;
      const row = await tx.one(updateTenantState(tenantId, state));
      await recordEvent(tx, call, tenantEvent(action, tenantId));
      return row;
    };
    const row = await transact(db, call, change, { settled: forgetTokens });
    return { tenant: tenantMessage(row) };
  };

  return {
    async createTenant({ tenantId = uuidv7(), label }, call) {
      requireTenantless(call);
      // Nobody is of a tenant that is only being made, whoever chose its id.
      checkTenant(call.caller, call.actor, tenantId);
      const row = await transact(db, call, async (tx) => {
        const created = await tx.maybeOne(insertTenant(tenantId, label));
        if (!created) {
          const present = await tx.one(selectTenant(tenantId));
          return present.tenant_label === label ? present : refusal("TENANT_ID_TAKEN", { tenant_id: tenantId });
        }
        await recordEvent(tx, call, tenantEvent("org.tenant.create", tenantId));
        return created;
      });
      return { tenant: tenantMessage(row) };
    },

    async getTenant({ tenantId }, call) {
      const row = await read(db, call, (connection) => connection.maybeOne(selectTenant(tenantId)));
      if (!row) throw tenantNotFound(tenantId);
      return { tenant: tenantMessage(row) };
    },

    async listTenants(request, call) {
      const page = readPage(ListTenantsRequestSchema, request, z.guid());
      const list = selectTenants(ownTenant(call), stateCode(request.state), page.after ?? null, page.size + 1);
      const found = await read(db, call, (connection) => connection.any(list));
      const { rows, nextPageToken } = cutPage(page, found, (row) => row.tenant_id);
      return { tenants: rows.map(tenantMessage), nextPageToken };
    },

    async updateTenant({ tenantId, label, updateMask }, call) {
      const fields = maskedFields(updateMask, { label }, ["label"]);
      const row = await transact(db, call, async (tx) => {
        const before = await tx.maybeOne(lockTenant(tenantId));
        if (!before) return tenantNotFound(tenantId);
        if (!fields.has("label") || before.tenant_label === label) return before;
        const updated = await tx.one(updateTenantLabel(tenantId, label));
        await recordEvent(tx, call, { ...tenantEvent("org.tenant.update", tenantId), payload: { fields: ["label"] } });
        return updated;
      });
      return { tenant: tenantMessage(row) };
    },

    suspendTenant: ({ tenantId }, call) => setState(tenantId, "suspended", "org.tenant.suspend", call),
    activateTenant: ({ tenantId }, call) => setState(tenantId, "active", "org.tenant.activate", call),
  } satisfies Partial<Handlers<typeof OrgService>>;
};
