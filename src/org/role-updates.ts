import { sql } from "slonik";
import { recordEvent } from "../audit/record.ts";
import { type Tx, transact } from "../db/transact.ts";
import { unlessTaken } from "../db/unless-taken.ts";
import type { OrgService } from "../gen/org/v1/org_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal, invalid, refusal } from "../rpc/refusal.ts";
import { maskedFields } from "../rpc/update-mask.ts";
import { capabilityIdRow, holdCapabilities } from "./capabilities.ts";
import type { OrgParts } from "./parts.ts";
import {
  type RoleRow,
  insertRoleCapabilities,
  lockRole,
  lockRoleContent,
  roleEvent,
  roleIdRow,
  roleMessage,
  selectRole,
} from "./roles.ts";

/** Of one role, however many requests add them: each answer has all of them. */
const CAPABILITIES_MAX = 1_000;

/** What can be changed of a role. */
interface Content {
  readonly label: string;
  readonly keys: readonly string[];
}

const updateRoleLabel = (tenantId: string, roleId: string, label: string) => sql.type(roleIdRow)`
  UPDATE roles SET role_label = ${label} WHERE tenant_id = ${tenantId}::uuid AND role_id = ${roleId}::uuid
  RETURNING role_id`;

const deleteRoleCapabilities = (roleId: string, keys: readonly string[]) => sql.type(capabilityIdRow)`
  DELETE FROM role_capabilities rc USING capabilities c
  WHERE rc.role_id = ${roleId}::uuid AND c.cap_id = rc.cap_id AND c.cap_key = ANY(${sql.array(keys, "text")})
  RETURNING rc.cap_id`;

/** Brings a locked role to its new content; what changes nothing writes nothing. */
const changeRole = async (tx: Tx, call: Call, before: RoleRow, { label, keys }: Content) => {
  const { tenant_id: tenantId, role_id: roleId } = before;
  const [had, wanted] = [new Set(before.cap_keys), new Set(keys)];
  const added = [...wanted.difference(had)].sort();
  const removed = [...had.difference(wanted)].sort();
  const isRenamed = label !== before.role_label;
  const isSameSet = added.length === 0 && removed.length === 0;
  if (!isRenamed && isSameSet) return before;
  if (added.length > 0 && wanted.size > CAPABILITIES_MAX) {
    return invalid({ field: "capability_keys", description: `a role has at most ${CAPABILITIES_MAX}` });
  }
  const capabilityIds = await holdCapabilities(tx, added);
  if (capabilityIds instanceof Refusal) return capabilityIds;
  if (isRenamed && !(await unlessTaken(tx, updateRoleLabel(tenantId, roleId, label)))) {
    return refusal("ROLE_LABEL_TAKEN");
  }
  if (removed.length > 0) await tx.any(deleteRoleCapabilities(roleId, removed));
  if (added.length > 0) await tx.any(insertRoleCapabilities(roleId, capabilityIds));
  const fields = [...(isRenamed ? ["label"] : []), ...(isSameSet ? [] : ["capability_keys"])];
  const payload = { fields, added_capability_keys: added, removed_capability_keys: removed };
  await recordEvent(tx, call, { ...roleEvent("org.role.update", before), payload });
  return tx.one(selectRole(tenantId, roleId));
};

export const roleUpdateHandlers = ({ db }: OrgParts) => {
  const change = async (
    { tenantId, roleId }: { readonly tenantId: string; readonly roleId: string },
    call: Call,
    contentAfter: (before: Content) => Content,
    lock: typeof lockRole = lockRoleContent,
  ) => {
    const row = await transact(db, call, async (tx) => {
      const before = await lock(tx, tenantId, roleId);
      if (before instanceof Refusal) return before;
      return changeRole(tx, call, before, contentAfter({ label: before.role_label, keys: before.cap_keys }));
    });
    return { role: roleMessage(row) };
  };

  return {
    async updateRole(request, call) {
      const { label, capabilityKeys, updateMask } = request;
      const fields = maskedFields(updateMask, { label, capability_keys: capabilityKeys }, ["label"]);
      return change(
        request,
        call,
        (before) => ({
          label: fields.has("label") ? label : before.label,
          keys: fields.has("capability_keys") ? capabilityKeys : before.keys,
        }),
        fields.has("label") ? lockRole : lockRoleContent,
      );
    },

    async addRoleCapabilities(request, call) {
      return change(request, call, ({ label, keys }) => ({ label, keys: [...keys, ...request.capabilityKeys] }));
    },

    async removeRoleCapabilities(request, call) {
      const removed = new Set(request.capabilityKeys);
      return change(request, call, ({ label, keys }) => ({ label, keys: keys.filter((key) => !removed.has(key)) }));
    },
  } satisfies Partial<Handlers<typeof OrgService>>;
};
