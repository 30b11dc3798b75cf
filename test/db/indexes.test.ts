import { afterAll, beforeAll, expect, test } from "vitest";
import { type ForeignKey, type Index, foreignKeys, indexes } from "../support/catalog.ts";
import { type TestDatabase, createDatabase } from "../support/database.ts";

let database: TestDatabase;
let existing: Index[];

beforeAll(async () => {
  database = await createDatabase();
  existing = await indexes(database.url);
});

afterAll(() => database.drop());

/** Foreign keys that nothing ever walks backwards: no row that they refer to is deleted. */
const NEVER_WALKED = [
  "audit_events.audit_events_actor_svc_fkey", // services are disabled
];

// An id is unique without its owner, which a key of both only holds to it; and tenants are never deleted.
const walkedBy = ({ columns }: ForeignKey) =>
  columns.filter((column) => column !== "tenant_id" && (column !== "svc_id" || columns.length === 1));

const serves = (columns: readonly string[], index: Index) =>
  columns.every((column) => index.columns.slice(0, columns.length).includes(column)) &&
  (index.where === undefined || columns.some((column) => index.where === `${column} IS NOT NULL`));

test("every foreign key that a delete or an end walks has an index", async () => {
  const keys = await foreignKeys(database.url);
  const bare = keys.filter(
    (key) => !existing.some((index) => index.table === key.table && serves(walkedBy(key), index)),
  );
  expect(keys.length).toBeGreaterThan(30);
  expect(bare.map(({ table, name }) => `${table}.${name}`)).toEqual(NEVER_WALKED);
});

const LISTS: readonly (readonly [what: string, table: string, columns: string, where?: string])[] = [
  ["ListUsers", "users", "tenant_id, user_id"],
  ["ListUsers of a state", "users", "tenant_id, user_state_code, user_id", "erased_utc IS NULL"],
  ["ListUsers, erased", "users", "tenant_id, user_id", "erased_utc IS NOT NULL"],
  ["ListUsers by e-mail prefix", "users", 'tenant_id, email_addr COLLATE "C", user_id'],
  ["ListUsers by phone prefix", "users", 'tenant_id, phone_e164 COLLATE "C", user_id'],
  ["ListUsers by name prefix", "users", 'tenant_id, display_label COLLATE "C", user_id'],
  ["ListSessions", "refresh_sessions", "user_id, session_id"],
  ["ListSessions, live", "refresh_sessions", "user_id, session_id", "revoked_utc IS NULL"],
  ["ListTenants of a state", "tenants", "tenant_state_code, tenant_id"],
  ["ListChildren", "org_nodes", "tenant_id, parent_org_node_id, org_node_id"],
  ["ListDescendants", "org_node_paths", "ancestor_org_node_id, depth_val, descendant_org_node_id"],
  ["ListAncestors", "org_node_paths", "descendant_org_node_id, ancestor_org_node_id"],
  ["ListRoles", "roles", "tenant_id, role_id", "deleted_utc IS NULL"],
  ["ListCapabilities by prefix", "capabilities", 'cap_key COLLATE "C"'],
  ["ListAssignments", "org_assignments", "tenant_id, assignment_id"],
  ["ListAssignments of a user", "org_assignments", "user_id, assignment_id"],
  ["ListAssignments at a node", "org_assignments", "org_node_id, assignment_id"],
  ["ListAssignments of a role", "org_assignments", "role_id, assignment_id"],
  ["decisions about a user", "org_assignments", "user_id, org_node_id"],
  ["ListUsersWithAccess", "org_assignments", "org_node_id, user_id"],
  ["ListVisibilityGrants", "visibility_grants", "tenant_id, grant_id"],
  ["ListVisibilityGrants of a scope", "visibility_grants", "tenant_id, access_scope_code, grant_id"],
  ["ListVisibilityGrants of a user", "visibility_grants", "user_id, grant_id"],
  ["ListVisibilityGrants at a node", "visibility_grants", "org_node_id, grant_id"],
  ["visibility of a user", "visibility_grants", "user_id, org_node_id"],
  ["visibility at a node", "visibility_grants", "org_node_id, user_id"],
  ["ListInvitations", "invitations", "tenant_id, invite_id"],
  ["ListInvitations, open", "invitations", "tenant_id, invite_id", "(accepted_utc IS NULL) AND (revoked_utc IS NULL)"],
  ["ListInvitations, accepted", "invitations", "tenant_id, invite_id", "accepted_utc IS NOT NULL"],
  ["ListInvitations, revoked", "invitations", "tenant_id, invite_id", "revoked_utc IS NOT NULL"],
  ["ListAuditEvents", "audit_events", "occurred_utc DESC, audit_id DESC"],
  ["ListAuditEvents of a tenant", "audit_events", "tenant_id, occurred_utc DESC, audit_id DESC"],
  ["ListAuditEvents of an entity", "audit_events", "entity_id, occurred_utc DESC, audit_id DESC"],
  [
    "ListAuditEvents of an actor",
    "audit_events",
    "actor_user_id, occurred_utc DESC, audit_id DESC",
    "actor_user_id IS NOT NULL",
  ],
  ["WatchAuditEvents", "audit_order", "position_val"],
  ["WatchAuditEvents of a tenant", "audit_order", "tenant_id, position_val"],
  ["ListServices", "services", "svc_id"],
  ["ListServices of a tenant", "services", "tenant_id, svc_id"],
  ["ListServices of a state", "services", "svc_state_code, svc_id"],
  ["ListServices of a tenant and a state", "services", "tenant_id, svc_state_code, svc_id"],
  ["ListServiceSecrets", "service_secrets", "svc_id, secret_id"],
  ["ListServiceSessions", "service_sessions", "svc_id, svc_session_id"],
  ["ListServiceSessions, live", "service_sessions", "svc_id, expiry_utc, svc_session_id", "revoked_utc IS NULL"],
  ["the purge of service sessions", "service_sessions", "expiry_utc"],
  ["the purge of sessions", "refresh_sessions", "expiry_utc"],
  ["the purge of codes", "otp_codes", "expiry_utc"],
  ["the purge of throttles", "throttles", "window_end_utc"],
];

test.each(LISTS)("%s has an index in its order", (_what, table, columns, where) => {
  const orders = existing
    .filter((index) => index.table === table && index.where === where)
    .map((index) => index.columns.join(", "));
  expect(orders.filter((order) => `${order}, `.startsWith(`${columns}, `))).not.toEqual([]);
});
