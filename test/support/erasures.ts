import { sql } from "slonik";
import { z } from "zod";
import type { User } from "../../src/gen/auth/v1/auth_pb.ts";
import { plantRoles } from "./roles.ts";
import type { TestService } from "./service.ts";
import { plantRoots } from "./trees.ts";

/** A node and a role of the tenant, to be assigned. */
export const plantPlace = async (server: TestService, tenantId: string) => {
  const [nodeId] = await plantRoots(server, tenantId, 1);
  const [roleId] = await plantRoles(server, tenantId, 1);
  return { nodeId: nodeId!, roleId: roleId! };
};

/** One window that has ended, one under way with and without an end, one that has not begun, and one cancelled. */
const WINDOWS = sql.fragment`
  (VALUES (1, -20, -10, NULL), (2, -20, NULL, NULL), (3, -20, 20, NULL), (4, 10, 20, NULL), (5, 20, NULL, 10))
    AS w (number, start_day, end_day, cancelled_day)`;

export const plantWindows = async (server: TestService, user: User) => {
  const { nodeId, roleId } = await plantPlace(server, user.tenantId);
  await server.pool.query(sql.unsafe`
    INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc, cancelled_utc)
    SELECT gen_random_uuid(), ${user.tenantId}::uuid, ${user.userId}::uuid, ${nodeId}::uuid, ${roleId}::uuid,
      now() + start_day * interval '1 day', now() + end_day * interval '1 day', now() + cancelled_day * interval '1 day'
    FROM ${WINDOWS}`);
  await server.pool.query(sql.unsafe`
    INSERT INTO visibility_grants (grant_id, tenant_id, user_id, org_node_id, access_scope_code, start_utc, end_utc,
      cancelled_utc)
    SELECT gen_random_uuid(), ${user.tenantId}::uuid, ${user.userId}::uuid, ${nodeId}::uuid, 'read',
      now() + start_day * interval '1 day', now() + end_day * interval '1 day', now() + cancelled_day * interval '1 day'
    FROM ${WINDOWS}`);
};

const windowRow = z.object({ id: z.string(), ended: z.boolean(), ended_now: z.boolean(), cancelled_now: z.boolean() });

const ID_OF = { org_assignments: "assignment_id", visibility_grants: "grant_id" } as const;
/** The actions by which they end. */
export const END_OF = { org_assignments: "org.assignment.end", visibility_grants: "org.visibility.revoke" } as const;

/** What stands of assignments or grants, those that start first first. */
export const windowsOf = ({ pool }: TestService, table: "org_assignments" | "visibility_grants", { userId }: User) =>
  pool.any(sql.type(windowRow)`
    SELECT ${sql.identifier([ID_OF[table]])} AS id, coalesce(end_utc <= now() OR cancelled_utc IS NOT NULL, false) AS ended,
      coalesce(end_utc BETWEEN now() - interval '1 minute' AND now(), false) AS ended_now,
      coalesce(cancelled_utc BETWEEN now() - interval '1 minute' AND now(), false) AS cancelled_now
    FROM ${sql.identifier([table])} WHERE user_id = ${userId}::uuid
    ORDER BY start_utc, end_utc NULLS LAST`);

const sessionRow = z.object({ reason: z.string().nullable(), clients: z.bigint(), sessions: z.bigint() });

/** A user's sessions by how they ended, with what is known of their clients. */
export const sessionsOf = ({ pool }: TestService, { userId }: User) =>
  pool.any(sql.type(sessionRow)`
    SELECT CASE WHEN revoked_utc IS NULL AND expiry_utc > now() THEN 'live' ELSE end_reason_code END AS reason,
      count(client_ip_text) + count(client_user_agent_text) AS clients, count(*) AS sessions
    FROM refresh_sessions WHERE user_id = ${userId}::uuid GROUP BY 1`);
