import { sql } from "slonik";
import { z } from "zod";
import type { Tx } from "../db/transact.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";

const erasedRow = z.object({ erased: z.boolean() });
const roleIdRow = z.object({ role_id: z.string() });
const nodeIdRow = z.object({ org_node_id: z.string() });

// Each holds a row to the end of the transaction, and refuses where it is not there: to be asked for in this order,
// which is that of all locks. FOR KEY SHARE, which an erasure and a deletion wait for and no other change does: PostgreSQL
// lets those who share a row pass one who waits to change it, for as long as enough of them come.

const shareUser = (tenantId: string, userId: string) => sql.type(erasedRow)`
  SELECT u.erased_utc IS NOT NULL AS erased
  FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.user_id = ${userId}::uuid
  FOR KEY SHARE`;

const shareRole = (tenantId: string, roleId: string) => sql.prepared("share-role", roleIdRow)`
  SELECT r.role_id FROM roles r
  WHERE r.tenant_id = ${tenantId}::uuid AND r.role_id = ${roleId}::uuid AND r.deleted_utc IS NULL
  FOR KEY SHARE`;

const shareNode = (tenantId: string, nodeId: string) => sql.prepared("share-node", nodeIdRow)`
  SELECT n.org_node_id FROM org_nodes n
  WHERE n.tenant_id = ${tenantId}::uuid AND n.org_node_id = ${nodeId}::uuid
  FOR KEY SHARE`;

/** Keeps a user from being erased. @returns USER_NOT_FOUND, USER_ERASED, or undefined where it is held. */
export const holdUser = async (tx: Tx, tenantId: string, userId: string): Promise<Refusal | undefined> => {
  const user = await tx.maybeOne(shareUser(tenantId, userId));
  if (!user) return refusal("USER_NOT_FOUND", { user_id: userId });
  return user.erased ? refusal("USER_ERASED", { user_id: userId }) : undefined;
};

/** Keeps a role from being deleted. @returns ROLE_NOT_FOUND, or undefined where it is held. */
export const holdRole = async (tx: Tx, tenantId: string, roleId: string): Promise<Refusal | undefined> => {
  const role = await tx.maybeOne(shareRole(tenantId, roleId));
  return role ? undefined : refusal("ROLE_NOT_FOUND", { role_id: roleId });
};

/** Keeps a node from being deleted. @returns NODE_NOT_FOUND, or undefined where it is held. */
export const holdNode = async (tx: Tx, tenantId: string, nodeId: string): Promise<Refusal | undefined> => {
  const node = await tx.maybeOne(shareNode(tenantId, nodeId));
  return node ? undefined : refusal("NODE_NOT_FOUND", { node_id: nodeId });
};
