import { randomUUID } from "node:crypto";
import { type QuerySqlToken, sql } from "slonik";
import { describe, expect, test } from "vitest";
import { SELECTS, searchOf, selectUsers } from "../../src/auth/user-lists.ts";
import { indexesOf, planOf, sortsOf } from "../support/plans.ts";
import { startService } from "../support/service.ts";
import { type Planted, plantUsers } from "../support/users.ts";

describe("the plans of lists, among 30,000 users of three tenants", () => {
  const FIRST = [null, null] as const;
  const statements = (tenantId: string): [string, QuerySqlToken][] => {
    const after = randomUUID();
    const search = searchOf(tenantId, "1", "active");
    return [
      ["users_tenant_user_key", selectUsers(tenantId, null, null, after, 51)],
      ["idx_users_tenant_state", selectUsers(tenantId, "active", false, after, 51)],
      ["idx_users_tenant_state", selectUsers(tenantId, "inactive", false, null, 51)],
      ["idx_users_tenant_erased", selectUsers(tenantId, null, true, after, 51)],
      ["idx_users_tenant_email_c", SELECTS.email(search, FIRST, 51)],
      ["idx_users_tenant_email_c", SELECTS.email(search, ["12@a.example", after], 51)],
      ["idx_users_tenant_phone_c", SELECTS.phone(search, FIRST, 51)],
      ["idx_users_tenant_phone_c", SELECTS.phone(search, ["+1005", after], 51)],
      ["idx_users_tenant_label_c", SELECTS.name(search, FIRST, 51)],
      ["idx_users_tenant_label_c", SELECTS.name(search, ["12", after], 51)],
    ];
  };

  test("each reads its index in order, and sorts nothing", async () => {
    const server = await startService("grpc");
    const tenants = [await server.addTenant(), await server.addTenant(), await server.addTenant()];
    const users = Array.from({ length: 10_000 }, (_, n): Planted => {
      return { email: `${n}@a.example`, phone: `+1${n}`, name: `${n}`, state: n % 2 === 0 ? "active" : "inactive" };
    });
    for (const tenantId of tenants) await plantUsers(server, tenantId, users);
    await server.pool.query(sql.unsafe`
      UPDATE users SET email_addr = NULL, phone_e164 = NULL, display_label = NULL, user_state_code = 'inactive',
        erased_utc = now()
      WHERE tenant_id = ${tenants[0]!}::uuid AND display_label LIKE '%7'`);
    await server.pool.query(sql.unsafe`VACUUM (ANALYZE) users`);
    for (const [index, statement] of statements(tenants[0]!)) {
      const plan = await planOf(server.pool, statement);
      expect({ read: indexesOf(plan), sorts: sortsOf(plan) }).toEqual({ read: [index], sorts: 0 });
    }
  });
});
