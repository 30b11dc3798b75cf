import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { changedMeanwhile, transactAgain } from "../db/looks.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import { type CapabilitySchema, ListCapabilitiesRequestSchema, type OrgService } from "../gen/org/v1/org_pb.ts";
import { requireTenantless } from "../rpc/caller.ts";
import type { Handlers } from "../rpc/methods.ts";
import { cutPage, keyText, readPage } from "../rpc/page.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import type { OrgParts } from "./parts.ts";

const roleIdRow = z.object({ role_id: z.string() });
export const capabilityIdRow = z.object({ cap_id: z.string() });

const capabilityRow = z.object({ cap_id: z.string(), cap_key: z.string(), created_utc: z.number() });
type CapabilityRow = z.output<typeof capabilityRow>;

const insertCapability = (capabilityId: string, key: string) => sql.type(capabilityRow)`
  INSERT INTO capabilities (cap_id, cap_key) VALUES (${capabilityId}::uuid, ${key})
  ON CONFLICT DO NOTHING
  RETURNING cap_id, cap_key, created_utc`;

const selectByIdOrKey = (capabilityId: string, key: string) => sql.type(capabilityRow)`
  SELECT c.cap_id, c.cap_key, c.created_utc
  FROM capabilities c WHERE c.cap_id = ${capabilityId}::uuid OR c.cap_key = ${key}`;

// By bytes, what begins with a prefix is at least the prefix, and less than the prefix before the last code point.
export const selectCapabilities = (prefix: string, after: string | null, limit: number) => sql.type(capabilityRow)`
  SELECT c.cap_id, c.cap_key, c.created_utc
  FROM capabilities c
  WHERE c.cap_key COLLATE "C" >= ${prefix}::text
    AND c.cap_key COLLATE "C" < ${prefix}::text || chr(1114111)
    AND (${after}::text IS NULL OR c.cap_key COLLATE "C" > ${after}::text)
  ORDER BY c.cap_key COLLATE "C"
  LIMIT ${limit}`;

// KEY SHARE is what a foreign key takes: givers do not wait for each other, and whoever deletes one waits for them.
const selectForGiving = (keys: readonly string[]) => sql.type(capabilityRow)`
  SELECT c.cap_id, c.cap_key, c.created_utc
  FROM capabilities c WHERE c.cap_key = ANY(${sql.array(keys, "text")})
  ORDER BY c.cap_key COLLATE "C"
  FOR KEY SHARE`;

const selectForDeletion = (key: string) => sql.type(capabilityRow)`
  SELECT c.cap_id, c.cap_key, c.created_utc
  FROM capabilities c WHERE c.cap_key = ${key} FOR UPDATE`;

// The first by id: in any order, PostgreSQL may read what all roles have to find it.
export const selectRoleWith = (capabilityId: string) => sql.type(roleIdRow)`
  SELECT rc.role_id
  FROM role_capabilities rc JOIN roles r ON r.role_id = rc.role_id
  WHERE rc.cap_id = ${capabilityId}::uuid AND r.deleted_utc IS NULL
  ORDER BY rc.role_id
  LIMIT 1`;

/** Where no role has it: deleted ones lose it too, since they would keep it for ever. */
const deleteCapability = (capabilityId: string) => sql.type(capabilityIdRow)`
  WITH had AS (
    DELETE FROM role_capabilities rc WHERE rc.cap_id = ${capabilityId}::uuid
  )
  DELETE FROM capabilities c WHERE c.cap_id = ${capabilityId}::uuid
  RETURNING c.cap_id`;

const capabilityMessage = (row: CapabilityRow): MessageInitShape<typeof CapabilitySchema> => ({
  capabilityId: row.cap_id,
  key: row.cap_key,
  createTime: timestampFromMs(row.created_utc),
});

/** Capabilities belong to no tenant. */
const capabilityEvent = (action: string, { cap_id, cap_key }: CapabilityRow) =>
  ({ action, tenantId: undefined, entityKind: "capability", entityId: cap_id, payload: { key: cap_key } }) as const;

const notFound = (key: string) => refusal("CAPABILITY_NOT_FOUND", { key });

/**
 * The ids of capabilities that a role shall have: none of them is deleted before the transaction has ended.
 *
 * CAPABILITY_NOT_FOUND names the first key, in the order of bytes, that is none.
 */
export const holdCapabilities = async (tx: Tx, keys: readonly string[]): Promise<readonly string[] | Refusal> => {
  if (keys.length === 0) return [];
  const rows = await tx.any(selectForGiving(keys));
  const found = new Set(rows.map((row) => row.cap_key));
  const missing = keys.filter((key) => !found.has(key)).sort();
  return missing[0] === undefined ? rows.map((row) => row.cap_id) : notFound(missing[0]);
};

/** The answer to a create whose id or key was there already. */
const created = async (tx: Tx, capabilityId: string, key: string) => {
  const present = await tx.any(selectByIdOrKey(capabilityId, key));
  const sameId = present.find((row) => row.cap_id === capabilityId.toLowerCase());
  if (sameId) return sameId.cap_key === key ? sameId : refusal("CAPABILITY_ID_TAKEN", { capability_id: capabilityId });
  return present.length > 0 ? refusal("CAPABILITY_KEY_TAKEN", { key }) : changedMeanwhile;
};

export const capabilityHandlers = ({ db }: OrgParts) =>
  ({
    async createCapability({ capabilityId = uuidv7(), key }, call) {
      requireTenantless(call);
      const row = await transactAgain(db, call, async (tx) => {
        const inserted = await tx.maybeOne(insertCapability(capabilityId, key));
        if (!inserted) return created(tx, capabilityId, key);
        await recordEvent(tx, call, capabilityEvent("org.capability.create", inserted));
        return inserted;
      });
      return { capability: capabilityMessage(row) };
    },

    async listCapabilities(request, call) {
      const page = readPage(ListCapabilitiesRequestSchema, request, keyText);
      const list = selectCapabilities(request.prefix ?? "", page.after ?? null, page.size + 1);
      const found = await read(db, call, (connection) => connection.any(list));
      const { rows, nextPageToken } = cutPage(page, found, (row) => row.cap_key);
      return { capabilities: rows.map(capabilityMessage), nextPageToken };
    },

    async deleteCapability({ key }, call) {
      requireTenantless(call);
      await transact(db, call, async (tx) => {
        const row = await tx.maybeOne(selectForDeletion(key));
        if (!row) return notFound(key);
        if (await tx.maybeOne(selectRoleWith(row.cap_id))) return refusal("CAPABILITY_IN_USE", { key });
        await tx.one(deleteCapability(row.cap_id));
        await recordEvent(tx, call, capabilityEvent("org.capability.delete", row));
        return row;
      });
      return {};
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
