import { randomBytes, randomUUID } from "node:crypto";
import { type CommonQueryMethods, sql } from "slonik";
import { z } from "zod";
import type { Role } from "../../src/gen/org/v1/org_pb.ts";
import type { TestService } from "./service.ts";
import { plantRoots } from "./trees.ts";
import { addUser } from "./users.ts";

/** The key of a capability that no other test has; `name` is its last part. */
export const uniqueCapability = (name = "edit"): string => `t${randomBytes(8).toString("hex")}.${name}`;

/** Creates capabilities that no other test has, one for each name; answers with their keys. */
export const addCapabilities = async (
  { org }: TestService,
  ...names: readonly string[]
): Promise<readonly string[]> => {
  const space = uniqueCapability("space");
  const keys = names.map((name) => `${space}.${name}`);
  for (const key of keys) await org.createCapability({ key });
  return keys;
};

/** A label that no other role has. */
export const uniqueLabel = (): string => `role ${randomUUID()}`;

export interface NewRole {
  readonly tenantId?: string;
  readonly label?: string;
  readonly capabilityKeys?: readonly string[];
}

/** Creates a role by the API, in a tenant of its own where it has none. */
export const addRole = async (server: TestService, role: NewRole = {}): Promise<Role> => {
  const { label = uniqueLabel(), capabilityKeys = [] } = role;
  const tenantId = role.tenantId ?? (await server.addTenant());
  const created = await server.org.createRole({ tenantId, label, capabilityKeys: [...capabilityKeys] });
  return created.role!;
};

/** Puts roles without capabilities into the database; answers with their ids. */
export const plantRoles = async (
  { pool }: TestService,
  tenantId: string,
  count: number,
): Promise<readonly string[]> => {
  const roleIds = Array.from({ length: count }, () => randomUUID());
  await pool.query(sql.unsafe`
    INSERT INTO roles (role_id, tenant_id, role_label)
    SELECT r.id, ${tenantId}::uuid, r.id::text FROM unnest(${sql.array(roleIds, "uuid")}) AS r (id)`);
  return roleIds;
};

/** Where a user may have a role. */
export interface Place {
  readonly tenantId: string;
  readonly userId: string;
  readonly nodeId: string;
}

/** A user and a node of a tenant, put into the database as they are. */
export const plantPlace = async (server: TestService, tenantId: string): Promise<Place> => {
  const { userId } = await addUser(server, { tenantId });
  const [nodeId] = await plantRoots(server, tenantId, 1);
  return { tenantId, userId, nodeId: nodeId! };
};

/** From when until when an assignment counts, in seconds from now; one without end has none. */
export interface Window {
  readonly start: number;
  readonly end?: number;
  readonly cancelled?: boolean;
}

/** Puts an assignment into the database; answers with its id. */
export const plantAssignment = async (
  db: CommonQueryMethods,
  { tenantId, userId, nodeId }: Place,
  roleId: string,
  { start, end, cancelled = false }: Window = { start: 0 },
): Promise<string> => {
  const assignmentId = randomUUID();
  await db.query(sql.unsafe`
    INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc,
      cancelled_utc)
    VALUES (${assignmentId}::uuid, ${tenantId}::uuid, ${userId}::uuid, ${nodeId}::uuid, ${roleId}::uuid,
      now() + ${start}::int * interval '1 second', now() + ${end ?? null}::int * interval '1 second',
      CASE WHEN ${cancelled}::boolean THEN now() END)`);
  return assignmentId;
};

/** Puts an invitation to a role into the database, as its columns say. */
export const plantInvitation = async (
  db: CommonQueryMethods,
  { tenantId, nodeId }: Place,
  roleId: string,
  state: "pending" | "accepted" | "revoked" | "expired",
): Promise<void> => {
  const expiry = state === "expired" ? -1 : 3_600;
  await db.query(sql.unsafe`
    INSERT INTO invitations (invite_id, tenant_id, email_addr, target_role_id, target_org_node_id,
      invite_token_hash_text, expiry_utc, accepted_utc, revoked_utc)
    VALUES (${randomUUID()}::uuid, ${tenantId}::uuid, 'ann@example.com', ${roleId}::uuid, ${nodeId}::uuid,
      ${randomUUID()}, now() + ${expiry}::int * interval '1 second',
      CASE WHEN ${state}::text = 'accepted' THEN now() END, CASE WHEN ${state}::text = 'revoked' THEN now() END)`);
};

const storedRow = z.object({ role_label: z.string(), deleted: z.boolean() });

/** A role as the database has it, deleted or not. */
export const storedRole = ({ pool }: TestService, roleId: string) =>
  pool.one(sql.type(storedRow)`
    SELECT role_label, deleted_utc IS NOT NULL AS deleted FROM roles WHERE role_id = ${roleId}::uuid`);
