import { type CommonQueryMethods, sql } from "slonik";

/** When an assignment or a grant counts, in seconds from now; null is no end. */
export interface PlantedWindow {
  readonly start: number;
  readonly end: number | null;
  readonly cancelled?: boolean;
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
  readonly assignments: readonly (PlantedWindow & {
    readonly id: string;
    readonly tenantId: string;
    readonly userId: string;
    readonly nodeId: string;
    readonly roleId: string;
  })[];
  readonly grants: readonly (PlantedWindow & {
    readonly id: string;
    readonly tenantId: string;
    readonly userId: string;
    readonly nodeId: string;
    readonly scope: "read" | "analyze";
  })[];
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

const plantTree = async (db: CommonQueryMethods, { nodes }: OrgWorld) => {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const paths = nodes.flatMap(({ id, tenantId }) =>
    lineOf(byId, id).map((ancestor, depth) => ({ tenantId, ancestor: ancestor.id, id, depth })),
  );
  await db.query(sql.unsafe`
    INSERT INTO org_nodes (org_node_id, tenant_id, node_type_code, node_label, parent_org_node_id, active_flag)
    SELECT r.id, r.tenant_id, 'place', 'Place', r.parent_id, r.active
    FROM unnest(${sql.array(
      nodes.map(({ id }) => id),
      "uuid",
    )},
      ${sql.array(
        nodes.map(({ tenantId }) => tenantId),
        "uuid",
      )},
      ${sql.array(
        nodes.map(({ parentId }) => parentId),
        "uuid",
      )},
      ${sql.array(
        nodes.map(({ active }) => active),
        "bool",
      )}) AS r (id, tenant_id, parent_id, active)`);
  await db.query(sql.unsafe`
    INSERT INTO org_node_paths (tenant_id, ancestor_org_node_id, descendant_org_node_id, depth_val)
    SELECT * FROM unnest(${sql.array(
      paths.map(({ tenantId }) => tenantId),
      "uuid",
    )},
      ${sql.array(
        paths.map(({ ancestor }) => ancestor),
        "uuid",
      )},
      ${sql.array(
        paths.map(({ id }) => id),
        "uuid",
      )},
      ${sql.array(
        paths.map(({ depth }) => depth),
        "int4",
      )})`);
};

const plantRoles = async (db: CommonQueryMethods, { capabilities, roles }: OrgWorld) => {
  const held = roles.flatMap(({ id, capabilityIds }) => capabilityIds.map((capabilityId) => ({ id, capabilityId })));
  await db.query(sql.unsafe`
    INSERT INTO capabilities (cap_id, cap_key)
    SELECT * FROM unnest(${sql.array(
      capabilities.map(({ id }) => id),
      "uuid",
    )},
      ${sql.array(
        capabilities.map(({ key }) => key),
        "text",
      )})`);
  await db.query(sql.unsafe`
    INSERT INTO roles (role_id, tenant_id, role_label)
    SELECT r.id, r.tenant_id, 'Role ' || r.id
    FROM unnest(${sql.array(
      roles.map(({ id }) => id),
      "uuid",
    )},
      ${sql.array(
        roles.map(({ tenantId }) => tenantId),
        "uuid",
      )}) AS r (id, tenant_id)`);
  await db.query(sql.unsafe`
    INSERT INTO role_capabilities (role_id, cap_id)
    SELECT * FROM unnest(${sql.array(
      held.map(({ id }) => id),
      "uuid",
    )},
      ${sql.array(
        held.map(({ capabilityId }) => capabilityId),
        "uuid",
      )})`);
};

const plantAssignments = (db: CommonQueryMethods, { assignments }: OrgWorld) =>
  db.query(sql.unsafe`
    INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc,
      cancelled_utc)
    SELECT r.id, r.tenant_id, r.user_id, r.node_id, r.role_id, now() + r.start_s * interval '1 second',
      now() + r.end_s * interval '1 second',
      CASE WHEN r.cancelled THEN now() + (r.start_s - 1) * interval '1 second' END
    FROM unnest(${sql.array(
      assignments.map(({ id }) => id),
      "uuid",
    )},
      ${sql.array(
        assignments.map(({ tenantId }) => tenantId),
        "uuid",
      )},
      ${sql.array(
        assignments.map(({ userId }) => userId),
        "uuid",
      )},
      ${sql.array(
        assignments.map(({ nodeId }) => nodeId),
        "uuid",
      )},
      ${sql.array(
        assignments.map(({ roleId }) => roleId),
        "uuid",
      )},
      ${sql.array(
        assignments.map(({ start }) => start),
        "float8",
      )},
      ${sql.array(
        assignments.map(({ end }) => end),
        "float8",
      )},
      ${sql.array(
        assignments.map(({ cancelled = false }) => cancelled),
        "bool",
      )})
      AS r (id, tenant_id, user_id, node_id, role_id, start_s, end_s, cancelled)`);

const plantGrants = (db: CommonQueryMethods, { grants }: OrgWorld) =>
  db.query(sql.unsafe`
    INSERT INTO visibility_grants (grant_id, tenant_id, user_id, org_node_id, access_scope_code, start_utc, end_utc,
      cancelled_utc)
    SELECT r.id, r.tenant_id, r.user_id, r.node_id, r.scope, now() + r.start_s * interval '1 second',
      now() + r.end_s * interval '1 second',
      CASE WHEN r.cancelled THEN now() + (r.start_s - 1) * interval '1 second' END
    FROM unnest(${sql.array(
      grants.map(({ id }) => id),
      "uuid",
    )},
      ${sql.array(
        grants.map(({ tenantId }) => tenantId),
        "uuid",
      )},
      ${sql.array(
        grants.map(({ userId }) => userId),
        "uuid",
      )},
      ${sql.array(
        grants.map(({ nodeId }) => nodeId),
        "uuid",
      )},
      ${sql.array(
        grants.map(({ scope }) => scope),
        "text",
      )},
      ${sql.array(
        grants.map(({ start }) => start),
        "float8",
      )},
      ${sql.array(
        grants.map(({ end }) => end),
        "float8",
      )},
      ${sql.array(
        grants.map(({ cancelled = false }) => cancelled),
        "bool",
      )})
      AS r (id, tenant_id, user_id, node_id, scope, start_s, end_s, cancelled)`);

/** Puts a world into the database, with a closure table as exact as the tree's own. */
export const plantWorld = async (db: CommonQueryMethods, part: Partial<OrgWorld>): Promise<OrgWorld> => {
  const world = { ...emptyWorld, ...part };
  await db.query(sql.unsafe`
    INSERT INTO tenants (tenant_id, tenant_label, tenant_state_code)
    SELECT r.id, 'Tenant', CASE WHEN r.active THEN 'active' ELSE 'suspended' END
    FROM unnest(${sql.array(
      world.tenants.map(({ id }) => id),
      "uuid",
    )},
      ${sql.array(
        world.tenants.map(({ active }) => active),
        "bool",
      )}) AS r (id, active)`);
  await db.query(sql.unsafe`
    INSERT INTO users (user_id, tenant_id, user_state_code)
    SELECT r.id, r.tenant_id, CASE WHEN r.active THEN 'active' ELSE 'inactive' END
    FROM unnest(${sql.array(
      world.users.map(({ id }) => id),
      "uuid",
    )},
      ${sql.array(
        world.users.map(({ tenantId }) => tenantId),
        "uuid",
      )},
      ${sql.array(
        world.users.map(({ active }) => active),
        "bool",
      )}) AS r (id, tenant_id, active)`);
  await plantTree(db, world);
  await plantRoles(db, world);
  await plantAssignments(db, world);
  await plantGrants(db, world);
  return world;
};
