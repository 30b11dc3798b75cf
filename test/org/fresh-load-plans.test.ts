import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { expect, test } from "vitest";
import { selectAncestors } from "../../src/org/node-lists.ts";
import { selectRoles } from "../../src/org/roles.ts";
import { plantUnchecked } from "../support/admin.ts";
import { blocksReadOf, planOf } from "../support/plans.ts";
import { launchForFile } from "../support/service.ts";
import { addNode, plantSubtree } from "../support/trees.ts";

const LOADED = ["capabilities", "roles", "role_capabilities", "org_nodes", "org_node_paths"];

test("what was just loaded, and is not analysed yet, is read by what is asked for alone", async () => {
  const server = await launchForFile("grpc");
  for (const table of LOADED) {
    await server.pool.query(sql.unsafe`ALTER TABLE ${sql.identifier([table])} SET (autovacuum_enabled = false)`);
  }
  const tenantId = await server.addTenant();
  const { nodeId } = await addNode(server, tenantId);
  await plantUnchecked(server, async (tx) => {
    await tx.query(sql.unsafe`
      INSERT INTO capabilities (cap_id, cap_key) SELECT gen_random_uuid(), 'c' || n FROM generate_series(1, 50000) AS n`);
    await tx.query(sql.unsafe`
      INSERT INTO roles (role_id, tenant_id, role_label)
      SELECT gen_random_uuid(), ${tenantId}::uuid, 'role ' || n FROM generate_series(1, 5000) AS n`);
    await tx.query(sql.unsafe`
      INSERT INTO role_capabilities (role_id, cap_id)
      SELECT r.role_id, c.cap_id FROM roles r CROSS JOIN (SELECT cap_id FROM capabilities LIMIT 10) c`);
  });
  await plantSubtree(server, tenantId, nodeId, 20_000);
  expect(blocksReadOf(await planOf(server.pool, selectRoles(tenantId, null, 50)))).toBeLessThan(5_000);
  expect(blocksReadOf(await planOf(server.pool, selectAncestors(tenantId, nodeId)))).toBeLessThan(50);
  expect(blocksReadOf(await planOf(server.pool, selectAncestors(tenantId, randomUUID())))).toBeLessThan(50);
});
