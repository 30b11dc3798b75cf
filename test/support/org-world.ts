import { type ArraySqlToken, type CommonQueryMethods, sql } from "slonik";
import { column } from "../../src/db/columns.ts";

/** When an assignment or a grant counts, in seconds from now; null is no end. */
export interface PlantedWindow {
  readonly start: number;
  readonly end: number | null;
  readonly cancelled?: boolean;
}

/** Who holds something at a node and below it. */
interface PlantedHolding extends PlantedWindow {
  readonly id: string;
  readonly tenantId: string;
  readonly userId: string;
  readonly nodeId: string;
}

/** Rows as they are put into the database; a node stands after its parent. */
export interface OrgWorld {
  readonly tenants: readonly { readonly id: string; readonly active: boolean }[];
  readonly users: readonly { readonly id: string; readonly tenantId: string; readonly active: boolean }[];
  readonly nodes: readonly {
    readonly id: string;
    readonly tenantId: string;
    readonly parentId: string | null;
    readonly active: boolean;
  }[];
  readonly capabilities: readonly { readonly id: string; readonly key: string }[];
  readonly roles: readonly {
    readonly id: string;
    readonly tenantId: string;
    readonly capabilityIds: readonly string[];
  }[];
  readonly assignments: readonly (PlantedHolding & { readonly roleId: string })[];
  readonly grants: readonly (PlantedHolding & { readonly scope: "read" | "analyze" })[];
}

const emptyWorld: OrgWorld = {
  tenants: [],
  users: [],
  nodes: [],
  capabilities: [],
  roles: [],
  assignments: [],
  grants: [],
};

/** The nodes from this one up to its root. */
export const lineOf = (nodes: ReadonlyMap<string, OrgWorld["nodes"][number]>, nodeId: string) => {
  const line: OrgWorld["nodes"][number][] = [];
  for (let node = nodes.get(nodeId); node; node = node.parentId === null ? undefined : nodes.get(node.parentId)) {
    line.push(node);
  }
  return line;
};

const uuids = <Name extends string>(rows: readonly Readonly<Record<Name, string | null>>[], name: Name) =>
  sql.array(column(rows, name), "uuid");

const plantTree = async (db: CommonQueryMethods, { nodes }: OrgWorld) => {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const paths = nodes.flatMap(({ id, tenantId }) =>
    lineOf(byId, id).map((ancestor, depth) => ({ tenantId, ancestor: ancestor.id, id, depth })),
  );
  await db.query(sql.unsafe`
    INSERT INTO org_nodes (org_node_id, tenant_id, node_type_code, node_label, parent_org_node_id, active_flag)
    SELECT r.id, r.tenant_id, 'place', 'Place', r.parent_id, r.active
    FROM unnest(${uuids(nodes, "id")}, ${uuids(nodes, "tenantId")}, ${uuids(nodes, "parentId")},
      ${sql.array(column(nodes, "active"), "bool")}) AS r (id, tenant_id, parent_id, active)`);
  await db.query(sql.unsafe`
    INSERT INTO org_node_paths (tenant_id, ancestor_org_node_id, descendant_org_node_id, depth_val)
    SELECT * FROM unnest(${uuids(paths, "tenantId")}, ${uuids(paths, "ancestor")}, ${uuids(paths, "id")},
      ${sql.array(column(paths, "depth"), "int4")})`);
};

const plantRoles = async (db: CommonQueryMethods, { capabilities, roles }: OrgWorld) => {
  const held = roles.flatMap(({ id, capabilityIds }) => capabilityIds.map((capabilityId) => ({ id, capabilityId })));
  await db.query(sql.unsafe`
    INSERT INTO capabilities (cap_id, cap_key)
    SELECT * FROM unnest(${uuids(capabilities, "id")}, ${sql.array(column(capabilities, "key"), "text")})`);
  await db.query(sql.unsafe`
    INSERT INTO roles (role_id, tenant_id, role_label)
    SELECT r.id, r.tenant_id, 'Role ' || r.id
    FROM unnest(${uuids(roles, "id")}, ${uuids(roles, "tenantId")}) AS r (id, tenant_id)`);
  await db.query(sql.unsafe`
    INSERT INTO role_capabilities (role_id, cap_id)
    SELECT * FROM unnest(${uuids(held, "id")}, ${uuids(held, "capabilityId")})`);
};

/** The values of assignments or of grants, with the role or the scope that is held. */
const selectHoldings = (rows: readonly PlantedHolding[], held: ArraySqlToken) => {
  const cancelled = rows.map((row) => row.cancelled ?? false);
  return sql.fragment`
    SELECT r.id, r.tenant_id, r.user_id, r.node_id, r.held, now() + r.start_s * interval '1 second',
      now() + r.end_s * interval '1 second',
      CASE WHEN r.cancelled THEN now() + (r.start_s - 1) * interval '1 second' END
    FROM unnest(${uuids(rows, "id")}, ${uuids(rows, "tenantId")}, ${uuids(rows, "userId")}, ${uuids(rows, "nodeId")},
      ${held}, ${sql.array(column(rows, "start"), "float8")}, ${sql.array(column(rows, "end"), "float8")},
      ${sql.array(cancelled, "bool")}) AS r (id, tenant_id, user_id, node_id, held, start_s, end_s, cancelled)`;
};

/** Puts a world into the database, with a closure table as exact as the tree's own. */
export const plantWorld = async (db: CommonQueryMethods, part: Partial<OrgWorld>): Promise<OrgWorld> => {
  const world = { ...emptyWorld, ...part };
  const { tenants, users, assignments, grants } = world;
  await db.query(sql.unsafe`
    INSERT INTO tenants (tenant_id, tenant_label, tenant_state_code)
    SELECT r.id, 'Tenant', CASE WHEN r.active THEN 'active' ELSE 'suspended' END
    FROM unnest(${uuids(tenants, "id")}, ${sql.array(column(tenants, "active"), "bool")}) AS r (id, active)`);
  await db.query(sql.unsafe`
    INSERT INTO users (user_id, tenant_id, user_state_code)
    SELECT r.id, r.tenant_id, CASE WHEN r.active THEN 'active' ELSE 'inactive' END
    FROM unnest(${uuids(users, "id")}, ${uuids(users, "tenantId")}, ${sql.array(column(users, "active"), "bool")})
      AS r (id, tenant_id, active)`);
  await plantTree(db, world);
  await plantRoles(db, world);
  await db.query(sql.unsafe`
    INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc,
      cancelled_utc) ${selectHoldings(assignments, uuids(assignments, "roleId"))}`);
  await db.query(sql.unsafe`
    INSERT INTO visibility_grants (grant_id, tenant_id, user_id, org_node_id, access_scope_code, start_utc, end_utc,
      cancelled_utc) ${selectHoldings(grants, sql.array(column(grants, "scope"), "text"))}`);
  return world;
};
