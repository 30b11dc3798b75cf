import { sql } from "slonik";
import { z } from "zod";
import { tenantNotFound } from "../org/tenants.ts";
import { refusal } from "../rpc/refusal.ts";

const tenantRow = z.object({ tenant_state_code: z.enum(["active", "suspended"]) });
type TenantRow = z.output<typeof tenantRow>;

export const selectTenant = (tenantId: string) => sql.prepared("select-tenant-state", tenantRow)`
  SELECT t.tenant_state_code FROM tenants t WHERE t.tenant_id = ${tenantId}::uuid`;

/**
 * The tenant that somebody signs in to or asks a code of.
 * @param row what was found of it, perhaps with more than its state
 * @throws TENANT_NOT_FOUND, TENANT_SUSPENDED
 */
export const activeTenant = <T extends TenantRow>(tenantId: string, row: T | null | undefined): T => {
  if (!row) throw tenantNotFound(tenantId);
  if (row.tenant_state_code === "suspended") throw refusal("TENANT_SUSPENDED", { tenant_id: tenantId });
  return row;
};
