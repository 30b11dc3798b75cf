import { sql } from "slonik";
import { expect, test } from "vitest";
import { selectEffectiveCapabilities } from "../../src/org/explanations.ts";
import { plantUnchecked } from "../support/admin.ts";
import { planOf } from "../support/plans.ts";
import { addCapabilities, addRole, plantPlace } from "../support/roles.ts";
import { startService } from "../support/service.ts";

test("the capabilities of a role are read once, however often somebody has it", async () => {
  const server = await startService("grpc");
  const keys = await addCapabilities(server, ...Array.from({ length: 20 }, (_, n) => `c${n + 10}`));
  const { tenantId, roleId } = await addRole(server, { capabilityKeys: keys });
  const [place, elsewhere] = [await plantPlace(server, tenantId), await plantPlace(server, tenantId)];
  for (const { userId, nodeId } of [place, elsewhere]) {
    await plantUnchecked(server, async (tx) => {
      await tx.query(sql.unsafe`
        INSERT INTO org_node_paths (tenant_id, ancestor_org_node_id, descendant_org_node_id, depth_val)
        VALUES (${tenantId}::uuid, ${nodeId}::uuid, ${nodeId}::uuid, 0)`);
      await tx.query(sql.unsafe`
        INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc)
        SELECT gen_random_uuid(), ${tenantId}::uuid, ${userId}::uuid, ${nodeId}::uuid, ${roleId}::uuid,
          now() - interval '1 day'
        FROM generate_series(1, 1000)`);
    });
  }
  const { userId, nodeId } = place;
  expect((await server.org.listEffectiveCapabilities({ tenantId, userId, nodeId })).capabilityKeys).toEqual(keys);
  const steps = await planOf(server.pool, selectEffectiveCapabilities(tenantId, userId, nodeId));
  // The assignments themselves, of both at most; with all that each of them gives they would be 20,000.
  const most = Math.max(...steps.map((step) => step["Actual Rows"] * step["Actual Loops"]));
  expect(most).toBeGreaterThanOrEqual(1_000);
  expect(most).toBeLessThanOrEqual(2_000);
});
