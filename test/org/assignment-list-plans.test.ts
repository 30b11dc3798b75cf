import { randomUUID } from "node:crypto";
import { type QuerySqlToken, sql } from "slonik";
import { describe, expect, test } from "vitest";
import { type AssignmentFilter, selectAssignments } from "../../src/org/assignment-lists.ts";
import { type GrantFilter, selectGrants } from "../../src/org/visibility-lists.ts";
import { timeText } from "../../src/org/windows.ts";
import { indexesOf, planOf, rowsReadOf, sortsOf } from "../support/plans.ts";
import { startService } from "../support/service.ts";
import {
  NOW_US,
  type Row,
  assignmentList,
  byId,
  grantList,
  insertRows,
  plantNames,
  walk,
} from "../support/window-lists.ts";
import { at } from "../support/windows.ts";

describe("among 30,000 of each, in a tenant of which one user has most", () => {
  const plant = async () => {
    const server = await startService("grpc");
    const tenantId = await server.addTenant();
    const { users, nodes, roles } = await plantNames(server, tenantId, 50);
    const rows = Array.from({ length: 30_000 }, (_, n): Row => ({
      id: randomUUID(),
      user: users[n % 3 === 0 ? n % 50 : 0]!,
      node: nodes[n % 49]!,
      role: roles[n % 47]!,
      scope: n % 5 === 0 ? "analyze" : "read",
      start: NOW_US,
      end: n % 3_000 === 0 ? null : NOW_US + 1n,
      cancelled: null,
    }));
    await insertRows(server, tenantId, rows);
    await server.pool.query(sql.unsafe`VACUUM (ANALYZE) org_assignments`);
    await server.pool.query(sql.unsafe`VACUUM (ANALYZE) visibility_grants`);
    return { server, tenantId, heavy: users[0]!, rows: byId(rows) };
  };
  const planted = plant();

  test("each list reads the index of its filter in order, sorts nothing and looks at no more than 2,000", async () => {
    const { server, tenantId, heavy, rows } = await planted;
    const { user: userId, node: nodeId, role: roleId, scope } = rows.find(({ user }) => user !== heavy)!;
    const after = rows[1_000]!.id;
    const none = { tenantId, userId: null, nodeId: null, activeAt: null };
    const late = timeText(NOW_US + 2n);
    const assignment = (filter: Partial<AssignmentFilter>) =>
      selectAssignments({ ...none, roleId: null, ...filter }, after, 51);
    const grant = (filter: Partial<GrantFilter>) => selectGrants({ ...none, scope: null, ...filter }, after, 51);
    const statements: [string, QuerySqlToken][] = [
      ["idx_assign_tenant_list", assignment({})],
      ["idx_assign_tenant_list", assignment({ activeAt: late })],
      ["idx_assign_user_list", assignment({ userId })],
      ["idx_assign_user_list", assignment({ userId: heavy, roleId, activeAt: late })],
      ["idx_assign_user_list", assignment({ userId, nodeId, roleId, activeAt: late })],
      ["idx_assign_node_list", assignment({ nodeId })],
      ["idx_assign_node_list", assignment({ nodeId, roleId })],
      ["idx_assign_role_list", assignment({ roleId, activeAt: late })],
      ["idx_vis_tenant_list", grant({})],
      ["idx_vis_tenant_list", grant({ activeAt: late })],
      ["idx_vis_user_list", grant({ userId })],
      ["idx_vis_user_list", grant({ userId: heavy, nodeId })],
      ["idx_vis_user_list", grant({ userId, nodeId, scope, activeAt: late })],
      ["idx_vis_node_list", grant({ nodeId, scope })],
      ["idx_vis_tenant_scope_list", grant({ scope: "analyze", activeAt: late })],
    ];
    for (const [index, statement] of statements) {
      const plan = await planOf(server.pool, statement);
      expect({ read: indexesOf(plan), sorts: sortsOf(plan) }).toEqual({ read: [index], sorts: 0 });
      expect(rowsReadOf(plan)).toBeLessThanOrEqual(2_000);
    }
  });

  test.each([assignmentList, grantList])("$name finds what is rare, page by page", async (list) => {
    const { server, tenantId, rows } = await planted;
    const pages = await walk(list, server, { tenantId, activeAt: at(NOW_US + 2n) }, 1_000);
    expect(pages).toHaveLength(16);
    expect(pages.flat()).toEqual(rows.filter(({ end }) => end === null).map(({ id }) => id));
  });
});
