import { sql } from "slonik";
import { expect, test } from "vitest";
import { z } from "zod";
import { UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { plantUnchecked } from "../support/admin.ts";
import { plantPlace, sessionsOf, windowsOf } from "../support/erasures.ts";
import { startService } from "../support/service.ts";
import { addUser } from "../support/users.ts";

const countRow = z.object({ count: z.bigint() });

test("a user with 6,000 sessions and 20,000 assignments is erased by statements that keep their time", async () => {
  const server = await startService("grpc");
  const user = await addUser(server);
  const { nodeId, roleId } = await plantPlace(server, user.tenantId);
  await plantUnchecked(server, async (tx) => {
    await tx.query(sql.unsafe`
      INSERT INTO refresh_sessions (session_id, user_id, tenant_id, refresh_token_hash_text, client_ip_text, expiry_utc,
        revoked_utc)
      SELECT gen_random_uuid(), ${user.userId}::uuid, ${user.tenantId}::uuid, 'x', '192.0.2.7', now() + interval '1 day',
        CASE WHEN n > 1000 THEN now() END
      FROM generate_series(1, 6000) AS n`);
    await tx.query(sql.unsafe`
      INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc)
      SELECT gen_random_uuid(), ${user.tenantId}::uuid, ${user.userId}::uuid, ${nodeId}::uuid, ${roleId}::uuid,
        now() + (n % 2 - 0.5) * interval '1 day'
      FROM generate_series(1, 20000) AS n`);
  });
  expect((await server.auth.eraseUser({ tenantId: user.tenantId, userId: user.userId })).user?.state).toBe(
    UserState.ERASED,
  );
  expect((await windowsOf(server, "org_assignments", user)).filter(({ ended }) => !ended)).toEqual([]);
  const events = sql.type(countRow)`
    SELECT count(DISTINCT entity_id) AS count FROM audit_events
    WHERE tenant_id = ${user.tenantId}::uuid AND action_key = 'org.assignment.end'`;
  expect(await server.pool.oneFirst(events)).toBe(20_000n);
  const sessions = await sessionsOf(server, user);
  expect(sessions.map(({ clients }) => clients)).toEqual([0n, 0n]);
  expect(sessions.map(({ reason }) => reason)).not.toContain("live");
});

test("all sessions of a user are ended, however many live", async () => {
  const server = await startService("grpc");
  const { tenantId, userId } = await addUser(server);
  await plantUnchecked(server, async (tx) => {
    await tx.query(sql.unsafe`
      INSERT INTO refresh_sessions (session_id, user_id, tenant_id, refresh_token_hash_text, expiry_utc)
      SELECT gen_random_uuid(), ${userId}::uuid, ${tenantId}::uuid, 'x', now() + (n % 5 - 0.5) * interval '1 day'
      FROM generate_series(1, 12500) AS n`);
  });
  expect((await server.auth.revokeAllSessions({ tenantId, userId })).revokedCount).toBe(10_000);
  expect((await server.auth.revokeAllSessions({ tenantId, userId })).revokedCount).toBe(0);
  expect((await server.auth.listSessions({ tenantId, userId })).sessions).toEqual([]);
});
