import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import { unlessTaken } from "../db/unless-taken.ts";
import {
  type CreateRoleRequest,
  ListRolesRequestSchema,
  type OrgService,
  type RoleSchema,
} from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readPage } from "../rpc/page.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";
import { sameSet } from "../same-set.ts";
import { capabilityIdRow, holdCapabilities } from "./capabilities.ts";
import type { OrgParts } from "./parts.ts";
import { missingTenant } from "./tenants.ts";

const usedRow = z.object({ used: z.boolean() });

// Capability keys on a page of roles, 128 bytes each at most: it stays below the 4 MiB that gRPC clients take.
const PAGE_KEYS_MAX = 20_000;

const roleRow = z.object({
  role_id: z.string(),
  tenant_id: z.string(),
  role_label: z.string(),
  created_utc: z.number(),
  cap_keys: z.array(z.string()),
});
export type RoleRow = z.output<typeof roleRow>;

export const roleIdRow = z.object({ role_id: z.string() });

/** OFFSET 0 here and below: before tables that were loaded are analysed, all capabilities would be read for each role. */
export const selectRole = (tenantId: string, roleId: string) => sql.type(roleRow)`
  SELECT r.role_id, r.tenant_id, r.role_label, r.created_utc,
    ARRAY(SELECT c.cap_key FROM role_capabilities rc
      CROSS JOIN LATERAL (SELECT k.cap_key FROM capabilities k WHERE k.cap_id = rc.cap_id OFFSET 0) c
      WHERE rc.role_id = r.role_id ORDER BY c.cap_key COLLATE "C") AS cap_keys
  FROM roles r
  WHERE r.tenant_id = ${tenantId}::uuid AND r.role_id = ${roleId}::uuid AND r.deleted_utc IS NULL`;

/** Of any tenant, deleted ones too: an id is unique without one, and for ever. */
const selectRoleAnywhere = (roleId: string) => sql.type(roleIdRow)`
  SELECT r.role_id FROM roles r WHERE r.role_id = ${roleId}::uuid`;

// FOR UPDATE, since a label is part of a key, and a weaker lock would have to grow when it changes. Whoever assigns the
// role or invites to it holds it FOR KEY SHARE, so that a deletion and they wait for each other.
const selectRoleForUpdate = (tenantId: string, roleId: string) => sql.type(roleIdRow)`
  SELECT r.role_id FROM roles r
  WHERE r.tenant_id = ${tenantId}::uuid AND r.role_id = ${roleId}::uuid AND r.deleted_utc IS NULL
  FOR UPDATE`;

const selectRoleForChange = (tenantId: string, roleId: string) => sql.type(roleIdRow)`
  SELECT r.role_id FROM roles r
  WHERE r.tenant_id = ${tenantId}::uuid AND r.role_id = ${roleId}::uuid AND r.deleted_utc IS NULL
  FOR NO KEY UPDATE`;

const listedRoleRow = roleRow.extend({ has_next: z.boolean() });

/** As many as have at most PAGE_KEYS_MAX capabilities together, and always the first. */
export const selectRoles = (tenantId: string, after: string | null, size: number) => sql.type(listedRoleRow)`
  WITH counted AS (
    SELECT r.role_id, r.tenant_id, r.role_label, r.created_utc, row_number() OVER by_id AS position,
      sum((SELECT count(*) FROM role_capabilities rc WHERE rc.role_id = r.role_id)) OVER by_id AS cap_total,
      coalesce(lead(true) OVER by_id, false) AS has_next
    FROM roles r
    WHERE r.tenant_id = ${tenantId}::uuid AND r.deleted_utc IS NULL
      AND (${after}::uuid IS NULL OR r.role_id > ${after}::uuid)
    WINDOW by_id AS (ORDER BY r.role_id)
    ORDER BY r.role_id
    LIMIT ${size}
  )
  SELECT r.role_id, r.tenant_id, r.role_label, r.created_utc,
    ARRAY(SELECT c.cap_key FROM role_capabilities rc
      CROSS JOIN LATERAL (SELECT k.cap_key FROM capabilities k WHERE k.cap_id = rc.cap_id OFFSET 0) c
      WHERE rc.role_id = r.role_id ORDER BY c.cap_key COLLATE "C") AS cap_keys,
    r.has_next
  FROM counted r
  WHERE r.position = 1 OR r.cap_total <= ${PAGE_KEYS_MAX}
  ORDER BY r.role_id`;

const insertRole = (tenantId: string, roleId: string, label: string) => sql.type(roleIdRow)`
  INSERT INTO roles (role_id, tenant_id, role_label) VALUES (${roleId}::uuid, ${tenantId}::uuid, ${label})
  ON CONFLICT DO NOTHING
  RETURNING role_id`;

export const insertRoleCapabilities = (roleId: string, capabilityIds: readonly string[]) =>
  sql.type(capabilityIdRow)`
  INSERT INTO role_capabilities (role_id, cap_id)
  SELECT ${roleId}::uuid, k.cap_id FROM unnest(${sql.array(capabilityIds, "uuid")}) AS k (cap_id)
  ON CONFLICT DO NOTHING
  RETURNING cap_id`;

/**
 * By the clock, not the transaction's start: what ended while it waited for the lock has ended.
 *
 * The first by id, not EXISTS: that one reads the whole table where it believes that many of a role's assignments last.
 */
export const selectUse = (tenantId: string, roleId: string) => sql.type(usedRow)`
  SELECT (
    SELECT a.assignment_id FROM org_assignments a
    WHERE a.tenant_id = ${tenantId}::uuid AND a.role_id = ${roleId}::uuid AND a.lasts_utc > clock_timestamp()
    ORDER BY a.assignment_id
    LIMIT 1
  ) IS NOT NULL OR (
    SELECT i.invite_id FROM invitations i
    WHERE i.tenant_id = ${tenantId}::uuid AND i.target_role_id = ${roleId}::uuid AND i.accepted_utc IS NULL
      AND i.revoked_utc IS NULL AND i.expiry_utc > clock_timestamp()
    ORDER BY i.invite_id
    LIMIT 1
  ) IS NOT NULL AS used`;

const updateRoleDeleted = (tenantId: string, roleId: string, label: string) => sql.type(roleIdRow)`
  UPDATE roles SET deleted_utc = clock_timestamp(), role_label = ${label}
  WHERE tenant_id = ${tenantId}::uuid AND role_id = ${roleId}::uuid
  RETURNING role_id`;

export const roleMessage = (row: RoleRow): MessageInitShape<typeof RoleSchema> => ({
  roleId: row.role_id,
  tenantId: row.tenant_id,
  label: row.role_label,
  capabilityKeys: row.cap_keys,
  createTime: timestampFromMs(row.created_utc),
});

/** The event of a change to a role. */
export const roleEvent = (action: string, { tenant_id, role_id }: RoleRow) =>
  ({ action, tenantId: tenant_id, entityKind: "role", entityId: role_id }) as const;

const notFound = (roleId: string) => refusal("ROLE_NOT_FOUND", { role_id: roleId });

type LockRole = (tx: Tx, tenantId: string, roleId: string) => Promise<RoleRow | Refusal>;

/** Reads a role once it is locked: one statement would see its capabilities as they were before it waited. */
const lockingBy =
  (select: typeof selectRoleForUpdate): LockRole =>
  async (tx, tenantId, roleId) =>
    (await tx.maybeOne(select(tenantId, roleId))) ? tx.one(selectRole(tenantId, roleId)) : notFound(roleId);

/** Locks a role that is deleted or renamed. */
export const lockRole = lockingBy(selectRoleForUpdate);

/** Locks a role whose label stays: whoever assigns it goes on. */
export const lockRoleContent = lockingBy(selectRoleForChange);

/** Whether a repeated create says nothing else than the first: what it leaves out is not compared. */
const isSameContent = (row: RoleRow, { label, capabilityKeys: keys }: CreateRoleRequest) =>
  row.role_label === label && (keys.length === 0 || sameSet(keys, row.cap_keys));

/** The answer to a create whose id or label is there already. */
const created = async (tx: Tx, roleId: string, request: CreateRoleRequest) => {
  const present = await tx.maybeOne(selectRole(request.tenantId, roleId));
  if (present && isSameContent(present, request)) return present;
  const idTaken = await tx.maybeOne(selectRoleAnywhere(roleId));
  return idTaken ? refusal("ROLE_ID_TAKEN", { role_id: roleId }) : refusal("ROLE_LABEL_TAKEN");
};

/** Ends a locked role; its label becomes free, and its capabilities stay for the history of what was assigned. */
const softDelete = async (tx: Tx, { tenant_id, role_id, role_label }: RoleRow) => {
  const label = `${role_label}#${role_id}`;
  if (await unlessTaken(tx, updateRoleDeleted(tenant_id, role_id, label))) return;
  // Somebody chose that very label for another role; nobody can have chosen this one.
  await tx.one(updateRoleDeleted(tenant_id, role_id, `${label}#${uuidv7()}`));
};

export const roleHandlers = ({ db }: OrgParts) =>
  ({
    async createRole(request, call) {
      const { tenantId, roleId = uuidv7(), label, capabilityKeys } = request;
      const row = await transact(db, call, async (tx) => {
        const missing = await missingTenant(tx, tenantId);
        if (missing) return missing;
        // First, since a repeat is told what became of the role even where a capability that it names has gone.
        if (request.roleId !== undefined && (await tx.maybeOne(selectRoleAnywhere(roleId))))
          return created(tx, roleId, request);
        const capabilityIds = await holdCapabilities(tx, capabilityKeys);
        if (capabilityIds instanceof Refusal) return capabilityIds;
        if (!(await tx.maybeOne(insertRole(tenantId, roleId, label)))) return created(tx, roleId, request);
        await tx.any(insertRoleCapabilities(roleId, capabilityIds));
        const role = await tx.one(selectRole(tenantId, roleId));
        const payload = { capability_keys: role.cap_keys };
        await recordEvent(tx, call, { ...roleEvent("org.role.create", role), payload });
        return role;
      });
      return { role: roleMessage(row) };
    },

    async getRole({ tenantId, roleId }, call) {
      const row = await read(db, call, (connection) => connection.maybeOne(selectRole(tenantId, roleId)));
      if (!row) throw notFound(roleId);
      return { role: roleMessage(row) };
    },

    async listRoles(request, call) {
      const page = readPage(ListRolesRequestSchema, request, z.guid());
      const list = selectRoles(request.tenantId, page.after ?? null, page.size);
      const rows = await read(db, call, (connection) => connection.any(list));
      const last = rows.at(-1);
      return { roles: rows.map(roleMessage), nextPageToken: last?.has_next ? page.tokenAfter(last.role_id) : "" };
    },

    async deleteRole({ tenantId, roleId }, call) {
      await transact(db, call, async (tx) => {
        const role = await lockRole(tx, tenantId, roleId);
        if (role instanceof Refusal) return role;
        if ((await tx.one(selectUse(tenantId, roleId))).used) return refusal("ROLE_IN_USE", { role_id: roleId });
        await softDelete(tx, role);
        const payload = { capability_keys: role.cap_keys };
        await recordEvent(tx, call, { ...roleEvent("org.role.delete", role), payload });
        return role;
      });
      return {};
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
