import { sql } from "slonik";
import type { Tx } from "../db/transact.ts";
import { svcIdRow } from "./rows.ts";

const lockRootPermissions = () => sql.type(svcIdRow)`
  SELECT p.svc_id FROM service_permissions p WHERE p.perm_key = '*' ORDER BY p.svc_id FOR UPDATE`;

const selectActiveRoots = () => sql.type(svcIdRow)`
  SELECT s.svc_id FROM service_permissions p
  JOIN services s ON s.svc_id = p.svc_id AND s.tenant_id IS NULL AND s.svc_state_code = 'active'
  WHERE p.perm_key = '*'
  ORDER BY s.svc_id
  LIMIT 2`;

/**
 * Makes whoever could end a root service take turns, before anything is read: two roots that disabled each other at once
 * would otherwise both see the other one standing.
 */
export const lockRoots = (tx: Tx): Promise<unknown> => tx.any(lockRootPermissions());

/** Whether the service is the last active one that holds `*` and has no tenant. Needs `lockRoots`. */
export const isLastRoot = async (tx: Tx, serviceId: string): Promise<boolean> => {
  const roots = await tx.any(selectActiveRoots());
  return roots.length === 1 && roots[0]?.svc_id === serviceId.toLowerCase();
};
