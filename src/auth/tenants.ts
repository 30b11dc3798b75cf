import { type TenantStateRow, tenantNotFound } from "../org/tenants.ts";
import { refusal } from "../rpc/refusal.ts";

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
