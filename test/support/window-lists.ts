import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { column } from "../../src/db/columns.ts";
import type { AccessScope } from "../../src/gen/org/v1/org_pb.ts";
import { timeText } from "../../src/org/windows.ts";
import { plantRoles } from "./roles.ts";
import type { TestService } from "./service.ts";
import { plantRoots } from "./trees.ts";
import { plantUsers } from "./users.ts";
import type { at } from "./windows.ts";
import { plantUnchecked } from "./admin.ts";

/** The microsecond that planted windows are around. */
export const NOW_US = 1_700_000_000_123_456n;

/** An assignment and a grant, as they are put into the database. Times are microseconds since 1970. */
export interface Row {
  readonly id: string;
  readonly user: string;
  readonly node: string;
  readonly role: string;
  readonly scope: "read" | "analyze";
  readonly start: bigint;
  readonly end: bigint | null;
  readonly cancelled: bigint | null;
}

/** Around one microsecond: over, ended at it, under way, begun at it, to come, and cancelled. */
const WINDOWS: readonly (readonly [bigint, bigint | null, bigint | null])[] = [
  [-2n, -1n, null],
  [-2n, 0n, null],
  [-2n, 1n, null],
  [-1n, null, null],
  [0n, 1n, null],
  [0n, null, null],
  [1n, null, null],
  [1n, 2n, -1n],
  [0n, null, -1n],
];

/** Whether one counts at a moment. */
export const counts = ({ start, end, cancelled }: Row, us: bigint) =>
  cancelled === null && start <= us && (end === null || us < end);

/** Users, nodes and roles of a tenant, two of each, as they are put into the database. */
export const plantNames = async (server: TestService, tenantId: string, count = 2) => {
  const contacts = Array.from({ length: count }, (_, n) => ({ email: null, phone: `+1${n}`, name: null }));
  const users = await plantUsers(server, tenantId, contacts);
  const [nodes, roles] = [await plantRoots(server, tenantId, count), await plantRoles(server, tenantId, count)];
  return { users, nodes, roles };
};

/** The same rows as assignments and as grants, without the checks of foreign keys, which would be most of the time. */
export const insertRows = ({ pool }: TestService, tenantId: string, rows: readonly Row[]) => {
  const uuids = (name: "id" | "user" | "node" | "role") => sql.array(column(rows, name), "uuid");
  const times = (name: "start" | "end" | "cancelled") => sql.array(column(rows, name).map(timeText), "text");
  const columns = [uuids("id"), uuids("user"), uuids("node")] as const;
  const windows = [times("start"), times("end"), times("cancelled")] as const;
  const asAssignments = sql.unsafe`
    INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc, cancelled_utc)
    SELECT r.a, ${tenantId}::uuid, r.b, r.c, r.d, r.e::timestamptz, r.f::timestamptz, r.g::timestamptz
    FROM unnest(${sql.join([...columns, uuids("role"), ...windows], sql.fragment`, `)}) AS r (a, b, c, d, e, f, g)`;
  const scopes = sql.array(column(rows, "scope"), "text");
  const asGrants = sql.unsafe`
    INSERT INTO visibility_grants (grant_id, tenant_id, user_id, org_node_id, access_scope_code, start_utc, end_utc,
      cancelled_utc)
    SELECT r.a, ${tenantId}::uuid, r.b, r.c, r.d, r.e::timestamptz, r.f::timestamptz, r.g::timestamptz
    FROM unnest(${sql.join([...columns, scopes, ...windows], sql.fragment`, `)}) AS r (a, b, c, d, e, f, g)`;
  return plantUnchecked({ pool }, async (tx) => {
    await tx.query(asAssignments);
    await tx.query(asGrants);
  });
};

export const byId = (rows: readonly Row[]) => rows.toSorted((a, b) => (a.id < b.id ? -1 : 1));

/** Every window for every user, node and role. */
export const plantRows = async (server: TestService) => {
  const tenantId = await server.addTenant();
  const { users, nodes, roles } = await plantNames(server, tenantId);
  const rows = users.flatMap((user) =>
    nodes.flatMap((node) =>
      roles.flatMap((role, index) =>
        WINDOWS.map(([start, end, cancelled]): Row => ({
          id: randomUUID(),
          user,
          node,
          role,
          scope: index === 0 ? "read" : "analyze",
          start: NOW_US + start,
          end: end === null ? null : NOW_US + end,
          // A cancelled one is cancelled before it begins.
          cancelled: cancelled === null ? null : NOW_US + cancelled,
        })),
      ),
    ),
  );
  await insertRows(server, tenantId, rows);
  return { tenantId, user: users[0]!, node: nodes[1]!, role: roles[0]!, rows: byId(rows) };
};

export interface Filter {
  readonly tenantId: string;
  readonly userId?: string;
  readonly nodeId?: string;
  readonly roleId?: string;
  readonly scope?: AccessScope;
  readonly activeAt?: ReturnType<typeof at>;
  readonly pageSize?: number;
  readonly pageToken?: string;
}

/** One of the two lists. */
export interface List {
  readonly name: string;
  ids(server: Pick<TestService, "org">, filter: Filter): Promise<{ ids: readonly string[]; nextPageToken: string }>;
  get(server: TestService, tenantId: string, id: string): Promise<unknown>;
  all(server: TestService, filter: Filter): Promise<readonly unknown[]>;
}

export const assignmentList: List = {
  name: "ListAssignments",
  async ids({ org }, filter) {
    const { assignments, nextPageToken } = await org.listAssignments(filter);
    return { ids: assignments.map(({ assignmentId }) => assignmentId), nextPageToken };
  },
  get: async ({ org }, tenantId, assignmentId) => (await org.getAssignment({ tenantId, assignmentId })).assignment,
  all: async ({ org }, filter) => (await org.listAssignments(filter)).assignments,
};

export const grantList: List = {
  name: "ListVisibilityGrants",
  async ids({ org }, filter) {
    const { grants, nextPageToken } = await org.listVisibilityGrants(filter);
    return { ids: grants.map(({ grantId }) => grantId), nextPageToken };
  },
  get: async ({ org }, tenantId, grantId) => (await org.getVisibilityGrant({ tenantId, grantId })).grant,
  all: async ({ org }, filter) => (await org.listVisibilityGrants(filter)).grants,
};

/** Every page of a list, each of at most this size. */
export const walk = async (list: List, server: Pick<TestService, "org">, filter: Filter, pageSize: number) => {
  const pages: (readonly string[])[] = [];
  for (let pageToken = ""; pages.length === 0 || pageToken !== "";) {
    const page = await list.ids(server, { ...filter, pageSize, pageToken });
    pages.push(page.ids);
    pageToken = page.nextPageToken;
  }
  return pages;
};
