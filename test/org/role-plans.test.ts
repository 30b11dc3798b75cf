import { randomUUID } from "node:crypto";
import { type QuerySqlToken, sql } from "slonik";
import { expect, test } from "vitest";
import { selectCapabilities, selectRoleWith } from "../../src/org/capabilities.ts";
import { selectRoles, selectUse } from "../../src/org/roles.ts";
import { indexesOf, planOf, scannedOf } from "../support/plans.ts";
import { type TestService, startService } from "../support/service.ts";
import { plantUnchecked } from "../support/admin.ts";

/** A tenant with 251 of 2,001 roles, one of which a quarter of 20,000 assignments and of 20,000 invitations names. */
const plant = async (server: TestService) => {
  const [tenantId, roleId, capabilityId] = [await server.addTenant(), randomUUID(), randomUUID()];
  await plantUnchecked(server, async (tx) => {
    await tx.query(sql.unsafe`
      INSERT INTO capabilities (cap_id, cap_key)
      SELECT ${capabilityId}::uuid, 'plan' UNION ALL
      SELECT gen_random_uuid(), 'm' || n % 100 || '.c' || n FROM generate_series(1, 10000) AS n`);
    await tx.query(sql.unsafe`
      INSERT INTO roles (role_id, tenant_id, role_label)
      SELECT ${roleId}::uuid, ${tenantId}::uuid, 'plan' UNION ALL
      SELECT gen_random_uuid(), CASE WHEN n % 8 = 0 THEN ${tenantId}::uuid ELSE ${randomUUID()}::uuid END, 'role ' || n
      FROM generate_series(1, 2000) AS n`);
    await tx.query(sql.unsafe`
      INSERT INTO role_capabilities (role_id, cap_id)
      SELECT r.role_id, c.cap_id FROM roles r
      CROSS JOIN (SELECT cap_id FROM capabilities ORDER BY cap_id = ${capabilityId}::uuid DESC LIMIT 10) c`);
    await tx.query(sql.unsafe`
      INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc)
      SELECT gen_random_uuid(), ${tenantId}::uuid, gen_random_uuid(), gen_random_uuid(),
        CASE WHEN n % 4 = 0 THEN ${roleId}::uuid ELSE gen_random_uuid() END, now() - interval '2 days',
        CASE WHEN n % 3 = 0 THEN now() - interval '1 day' END
      FROM generate_series(1, 20000) AS n`);
    await tx.query(sql.unsafe`
      INSERT INTO invitations (invite_id, tenant_id, target_role_id, target_org_node_id, invite_token_hash_text,
        expiry_utc)
      SELECT gen_random_uuid(), ${tenantId}::uuid, CASE WHEN n % 4 = 0 THEN ${roleId}::uuid ELSE gen_random_uuid() END,
        gen_random_uuid(), n, now() + interval '1 day' - n % 3 * interval '2 days'
      FROM generate_series(1, 20000) AS n`);
  });
  for (const table of ["capabilities", "roles", "role_capabilities", "org_assignments", "invitations"]) {
    await server.pool.query(sql.unsafe`VACUUM (ANALYZE) ${sql.identifier([table])}`);
  }
  return { tenantId, roleId, capabilityId };
};

test("pages and uses of roles and capabilities are read by their indexes, whatever else is in the tables", async () => {
  const server = await startService("grpc");
  const { tenantId, roleId, capabilityId } = await plant(server);
  const statements: readonly [string, QuerySqlToken][] = [
    ["idx_capabilities_key_c", selectCapabilities("", null, 51)],
    ["idx_capabilities_key_c", selectCapabilities("m77.", "m77.c177", 51)],
    ["idx_roles_tenant_live", selectRoles(tenantId, null, 50)],
    ["idx_roles_tenant_live", selectRoles(tenantId, roleId, 50)],
    ["idx_assign_role_list", selectUse(tenantId, roleId)],
    ["idx_role_caps_cap", selectRoleWith(capabilityId)],
  ];
  for (const [index, statement] of statements) {
    const plan = await planOf(server.pool, statement);
    expect(indexesOf(plan)).toContain(index);
    expect(scannedOf(plan)).toEqual([]);
  }
});
