import type { Client } from "pg";

/** Children of each node: with six levels below the root that is a million nodes, and seven ancestors for most. */
const FANOUT = 10;
const ROLES = 20;
const CAPABILITIES = 100;
const CAPABILITIES_OF_ROLE = 10;
/** User 0 has as many as this, where the world has so many. */
const HEAVY_ASSIGNMENTS = 20_000;

/** One tenant with one tree, whose ids are made of numbers: who asks needs no list of them. */
export interface AccessWorld {
  /** Twelve hexadecimal digits, with which its ids begin: UUIDs of version 7, as the service's own are. */
  readonly prefix: string;
  readonly nodes: number;
  readonly users: number;
  readonly assignments: number;
}

const KINDS = { tenant: "001", user: "002", node: "003", role: "004", assignment: "005", reading: "006" } as const;
type Kind = keyof typeof KINDS;

const head = ({ prefix }: AccessWorld, kind: Kind) => `${prefix.slice(0, 8)}-${prefix.slice(8)}-7${KINDS[kind]}-8000-`;

export const worldId = (world: AccessWorld, kind: Kind, number: number): string =>
  head(world, kind) + number.toString(16).padStart(12, "0");

/** What a role of the world may do; every user has `bench.reader` at the root, by a role of its own. */
export const READER = "bench.reader";
export const capabilityKey = (number: number): string => `bench.capability_${number % CAPABILITIES}`;

/** One of the checks that the assignment answers with yes, where it has not ended: its user, role, and a node below it. */
export const heldBy = (world: AccessWorld, assignment: number) => ({
  user: assignment < HEAVY_ASSIGNMENTS ? 0 : assignment % world.users,
  node: (assignment * 7919) % world.nodes,
  capability: ((assignment % ROLES) * CAPABILITIES_OF_ROLE) / 2,
});

export const childOf = (world: AccessWorld, node: number, which: number): number => {
  const child = node * FANOUT + 1 + (which % FANOUT);
  return child < world.nodes ? child : node;
};

const statements = (world: AccessWorld): readonly string[] => {
  const id = (kind: Kind, number: string | number) =>
    `('${head(world, kind)}' || lpad(to_hex((${number})::bigint), 12, '0'))::uuid`;
  const { nodes, users, assignments } = world;
  const tenant = id("tenant", 0);
  return [
    `INSERT INTO capabilities (cap_id, cap_key)
    SELECT md5('capability/' || n)::uuid, 'bench.capability_' || n FROM generate_series(0, ${CAPABILITIES - 1}) n
    UNION ALL SELECT md5('${READER}')::uuid, '${READER}'
    ON CONFLICT DO NOTHING`,
    `INSERT INTO tenants (tenant_id, tenant_label, tenant_state_code) VALUES (${tenant}, 'Bench', 'active')`,
    `INSERT INTO users (user_id, tenant_id, display_label, user_state_code)
    SELECT ${id("user", "n")}, ${tenant}, 'User ' || n, 'active' FROM generate_series(0, ${users - 1}) n`,
    `INSERT INTO roles (role_id, tenant_id, role_label)
    SELECT ${id("role", "n")}, ${tenant}, 'Role ' || n FROM generate_series(0, ${ROLES}) n`,
    `INSERT INTO role_capabilities (role_id, cap_id)
    SELECT ${id("role", "r")}, c.cap_id
    FROM generate_series(0, ${ROLES - 1}) r, generate_series(0, ${CAPABILITIES_OF_ROLE - 1}) k, capabilities c
    WHERE c.cap_key = 'bench.capability_' || (r * ${CAPABILITIES_OF_ROLE / 2} + k) % ${CAPABILITIES}
    UNION ALL SELECT ${id("role", ROLES)}, md5('${READER}')::uuid`,
    `INSERT INTO org_nodes (org_node_id, tenant_id, node_type_code, node_label, parent_org_node_id, active_flag)
    SELECT ${id("node", "n")}, ${tenant}, 'place', 'Node ' || n,
      CASE WHEN n > 0 THEN ${id("node", `(n - 1) / ${FANOUT}`)} END, n % 1000 <> 999
    FROM generate_series(0, ${nodes - 1}) n`,
    `WITH RECURSIVE paths (ancestor, descendant, depth) AS (
      SELECT n, n, 0 FROM generate_series(0, ${nodes - 1}) n
      UNION ALL
      SELECT (p.ancestor - 1) / ${FANOUT}, p.descendant, p.depth + 1 FROM paths p WHERE p.ancestor > 0
    )
    INSERT INTO org_node_paths (tenant_id, ancestor_org_node_id, descendant_org_node_id, depth_val)
    SELECT ${tenant}, ${id("node", "ancestor")}, ${id("node", "descendant")}, depth
    FROM paths ORDER BY ancestor, descendant`,
    `INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc)
    SELECT ${id("assignment", "n")}, ${tenant},
      ${id("user", `CASE WHEN n < ${HEAVY_ASSIGNMENTS} THEN 0 ELSE n % ${users} END`)},
      ${id("node", `n::bigint * 7919 % ${nodes}`)}, ${id("role", `n % ${ROLES}`)},
      now() - interval '1 day', CASE WHEN n % 10 = 9 THEN now() - interval '1 hour' END
    FROM generate_series(0, ${assignments - 1}) n`,
    `INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc)
    SELECT ${id("reading", "n")}, ${tenant}, ${id("user", "n")}, ${id("node", 0)}, ${id("role", ROLES)},
      now() - interval '1 day'
    FROM generate_series(0, ${users - 1}) n`,
  ];
};

interface SecondaryIndex {
  readonly indexname: string;
  readonly indexdef: string;
}

/** Runs `work` while the two great tables have only their keys: indexes are built faster than they are filled. */
const withoutIndexes = async (client: Client, work: () => Promise<void>): Promise<void> => {
  const { rows } = await client.query<SecondaryIndex>(
    `SELECT i.indexname, i.indexdef FROM pg_indexes i
    WHERE i.tablename IN ('org_node_paths', 'org_assignments')
      AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conname = i.indexname)`,
  );
  for (const { indexname } of rows) await client.query(`DROP INDEX ${indexname}`);
  await work();
  for (const { indexdef } of rows) await client.query(indexdef);
};

/** Loads the worlds in bulk, without the triggers of foreign keys, which would take most of the time. @returns seconds */
export const loadAccessWorlds = async (client: Client, worlds: readonly AccessWorld[]): Promise<number> => {
  const started = performance.now();
  await client.query("SET statement_timeout = 0");
  await client.query("SET maintenance_work_mem = '256MB'");
  await client.query("SET session_replication_role = replica");
  await withoutIndexes(client, async () => {
    for (const statement of worlds.flatMap(statements)) await client.query(statement);
  });
  await client.query("VACUUM (ANALYZE)");
  // Otherwise what was loaded is written to the disk beside what is measured.
  await client.query("CHECKPOINT");
  return (performance.now() - started) / 1_000;
};
