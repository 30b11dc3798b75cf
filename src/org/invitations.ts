import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type CommonQueryMethods, sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { type Contact, readContact } from "../auth/contacts.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import {
  type CreateInvitationRequest,
  type GetInvitationRequest,
  type InvitationSchema,
  InvitationState,
  type OrgService,
} from "../gen/org/v1/org_pb.ts";
import type { Macs } from "../macs.ts";
import type { Call } from "../rpc/call.ts";
import { checkTenant, ownTenant } from "../rpc/caller.ts";
import type { Handlers } from "../rpc/methods.ts";
import { invalid, refusal } from "../rpc/refusal.ts";
import { covers } from "../service-identity/permission-sets.ts";
import { holdNode, holdRole } from "./holds.ts";
import { deriveToken, isGenuineToken, newToken, tokenInvitationId } from "./invitation-tokens.ts";
import type { OrgParts } from "./parts.ts";
import { missingTenant } from "./tenants.ts";

export const invitationRow = z.object({
  invite_id: z.string(),
  tenant_id: z.string(),
  email_addr: z.string().nullable(),
  phone_e164: z.string().nullable(),
  invited_by_user_id: z.string().nullable(),
  target_role_id: z.string().nullable(),
  target_org_node_id: z.string().nullable(),
  invite_token_hash_text: z.string(),
  expiry_utc: z.number(),
  accepted_utc: z.number().nullable(),
  revoked_utc: z.number().nullable(),
  created_utc: z.number(),
  /** By the database's clock. */
  expired: z.boolean(),
});
export type InvitationRow = z.output<typeof invitationRow>;

const invitationIdRow = z.object({ invite_id: z.string() });

/** @param own the tenant beyond which the caller sees none; null where it sees all. */
export const selectInvitation = (own: string | null, invitationId: string) => sql.type(invitationRow)`
  SELECT i.invite_id, i.tenant_id, i.email_addr, i.phone_e164, i.invited_by_user_id, i.target_role_id,
    i.target_org_node_id, i.invite_token_hash_text, i.expiry_utc, i.accepted_utc, i.revoked_utc, i.created_utc,
    i.expiry_utc <= statement_timestamp() AS expired
  FROM invitations i
  WHERE (${own}::uuid IS NULL OR i.tenant_id = ${own}::uuid) AND i.invite_id = ${invitationId}::uuid`;

export const lockInvitation = (tenantId: string, invitationId: string) => sql.type(invitationIdRow)`
  SELECT i.invite_id FROM invitations i
  WHERE i.tenant_id = ${tenantId}::uuid AND i.invite_id = ${invitationId}::uuid
  FOR NO KEY UPDATE`;

/** An invitation to be made; null is what the request leaves out. */
interface NewInvitation {
  readonly tenantId: string;
  readonly invitationId: string;
  readonly contact: Contact;
  readonly target: { readonly roleId: string; readonly nodeId: string } | null;
  readonly ttlMs: number | null;
}

// Both times from one clock, so that a repeat finds the life span that the first was made with.
const insertInvitation = (invitation: NewInvitation, inviterId: string | null, hash: string, ttlMs: number) => {
  const { contact, target } = invitation;
  return sql.type(invitationRow)`
  INSERT INTO invitations (invite_id, tenant_id, email_addr, phone_e164, invited_by_user_id, target_role_id,
    target_org_node_id, invite_token_hash_text, expiry_utc, created_utc)
  VALUES (${invitation.invitationId}::uuid, ${invitation.tenantId}::uuid,
    ${contact.kind === "email" ? contact.text : null}, ${contact.kind === "phone" ? contact.text : null},
    ${inviterId}::uuid, ${target?.roleId ?? null}::uuid, ${target?.nodeId ?? null}::uuid, ${hash},
    now() + ${ttlMs}::float8 * interval '1 millisecond', now())
  ON CONFLICT (invite_id) DO NOTHING
  RETURNING invite_id, tenant_id, email_addr, phone_e164, invited_by_user_id, target_role_id, target_org_node_id,
    invite_token_hash_text, expiry_utc, accepted_utc, revoked_utc, created_utc, false AS expired`;
};

const updateRevoked = (tenantId: string, invitationId: string) => sql.type(invitationRow)`
  UPDATE invitations SET revoked_utc = statement_timestamp()
  WHERE tenant_id = ${tenantId}::uuid AND invite_id = ${invitationId}::uuid
  RETURNING invite_id, tenant_id, email_addr, phone_e164, invited_by_user_id, target_role_id, target_org_node_id,
    invite_token_hash_text, expiry_utc, accepted_utc, revoked_utc, created_utc,
    expiry_utc <= statement_timestamp() AS expired`;

export const stateOf = (row: Pick<InvitationRow, "accepted_utc" | "revoked_utc" | "expired">): InvitationState => {
  if (row.accepted_utc !== null) return InvitationState.ACCEPTED;
  if (row.revoked_utc !== null) return InvitationState.REVOKED;
  return row.expired ? InvitationState.EXPIRED : InvitationState.PENDING;
};

export const invitationMessage = (row: InvitationRow): MessageInitShape<typeof InvitationSchema> => ({
  invitationId: row.invite_id,
  tenantId: row.tenant_id,
  ...(row.email_addr !== null && { email: row.email_addr }),
  ...(row.phone_e164 !== null && { phone: row.phone_e164 }),
  ...(row.invited_by_user_id !== null && { invitedByUserId: row.invited_by_user_id }),
  ...(row.target_role_id !== null && { roleId: row.target_role_id }),
  ...(row.target_org_node_id !== null && { nodeId: row.target_org_node_id }),
  state: stateOf(row),
  expireTime: timestampFromMs(row.expiry_utc),
  ...(row.accepted_utc !== null && { acceptTime: timestampFromMs(row.accepted_utc) }),
  createTime: timestampFromMs(row.created_utc),
});

/** The event of a change to an invitation. */
export const invitationEvent = (
  action: string,
  { tenant_id, invite_id }: Pick<InvitationRow, "tenant_id" | "invite_id">,
) => ({ action, tenantId: tenant_id, entityKind: "invitation", entityId: invite_id }) as const;

/** @param invitationId undefined where it was named by a token, of which a refusal repeats nothing. */
export const invitationNotFound = (invitationId: string | undefined) =>
  refusal("INVITATION_NOT_FOUND", invitationId === undefined ? {} : { invitation_id: invitationId });

/** The invitation of a genuine token, where the caller sees it. */
export const findByToken = async (db: CommonQueryMethods, macs: Macs, call: Call, token: string) => {
  const invitationId = tokenInvitationId(token);
  if (invitationId === undefined) return undefined;
  const row = await db.maybeOne(selectInvitation(ownTenant(call), invitationId));
  return row && isGenuineToken(macs, token, row.invite_token_hash_text) ? row : undefined;
};

/** @throws INVALID_REQUEST where there is none, or both, or what is no contact. */
const readInvited = ({ email, phone }: CreateInvitationRequest): Contact => {
  if (email !== undefined && phone === undefined) return readContact("email", email);
  if (phone !== undefined && email === undefined) return readContact("phone", phone);
  const description = "exactly one of email and phone must be there";
  throw invalid({ field: "email", description }, { field: "phone", description });
};

/** @throws INVALID_REQUEST where one is there without the other. */
const readTarget = ({ roleId, nodeId }: CreateInvitationRequest): NewInvitation["target"] => {
  if (roleId !== undefined && nodeId !== undefined) return { roleId, nodeId };
  if (roleId === undefined && nodeId === undefined) return null;
  const [field, other] = roleId === undefined ? ["role_id", "node_id"] : ["node_id", "role_id"];
  throw invalid({ field, description: `must be there where ${other} is` });
};

/** Whether a repeated request says nothing else than the first: what it leaves out is not compared. */
const isSameContent = (row: InvitationRow, { tenantId, contact, target, ttlMs }: NewInvitation) =>
  row.tenant_id === tenantId.toLowerCase() &&
  contact.text === (contact.kind === "email" ? row.email_addr : row.phone_e164) &&
  (target === null ||
    (row.target_role_id === target.roleId.toLowerCase() && row.target_org_node_id === target.nodeId.toLowerCase())) &&
  (ttlMs === null || row.expiry_utc - row.created_utc === ttlMs);

/** Accepting assigns the role: whoever gets the token must be one who may assign. */
const refuseRole = ({ caller }: Call) => {
  const permission = "org.assignment.write";
  return covers(caller.permissions, permission) ? undefined : refusal("PERMISSION_MISSING", { permission });
};

const selectByKey =
  ({ selector }: GetInvitationRequest, macs: Macs, call: Call) =>
  async (db: CommonQueryMethods) =>
    selector.case === "inviteToken"
      ? findByToken(db, macs, call, selector.value)
      : db.maybeOne(selectInvitation(ownTenant(call), selector.value ?? ""));

export const invitationHandlers = ({ db, config, macs }: OrgParts) => {
  /** What a repeat is answered. One whose token cannot be made again is nothing to answer with. */
  const repeated = (call: Call, row: InvitationRow, invitation: NewInvitation) => {
    const isSame = isSameContent(row, invitation);
    const token = isSame ? deriveToken(macs, row.invite_id, row.invite_token_hash_text) : undefined;
    if (token === undefined) return refusal("INVITATION_ID_TAKEN", { invitation_id: row.invite_id });
    const barred = row.target_role_id !== null && refuseRole(call);
    return barred || { row, token };
  };

  const invite = async (tx: Tx, call: Call, invitation: NewInvitation) => {
    const { tenantId, target, ttlMs } = invitation;
    const missing =
      target && ((await holdRole(tx, tenantId, target.roleId)) ?? (await holdNode(tx, tenantId, target.nodeId)));
    if (missing) return missing;
    const { token, hash } = newToken(macs, invitation.invitationId.toLowerCase());
    const insert = insertInvitation(invitation, call.actor?.userId ?? null, hash, ttlMs ?? config.invitationTtlMs);
    const row = await tx.maybeOne(insert);
    if (!row) return repeated(call, await tx.one(selectInvitation(null, invitation.invitationId)), invitation);
    const payload = target ? { role_id: target.roleId.toLowerCase(), node_id: target.nodeId.toLowerCase() } : {};
    await recordEvent(tx, call, { ...invitationEvent("org.invitation.create", row), payload });
    return { row, token };
  };

  return {
    async createInvitation(request, call) {
      const { tenantId, invitationId = uuidv7(), ttl } = request;
      const target = readTarget(request);
      const barred = target && refuseRole(call);
      if (barred) throw barred;
      const ttlMs = ttl ? durationMs(ttl) : null;
      const invitation = { tenantId, invitationId, contact: readInvited(request), target, ttlMs };
      const { row, token } = await transact(db, call, async (tx) => {
        const missing = await missingTenant(tx, tenantId);
        if (missing) return missing;
        // Before anything is held: a repeat is answered also once the role or the node is gone.
        const present = request.invitationId && (await tx.maybeOne(selectInvitation(null, invitationId)));
        return present ? repeated(call, present, invitation) : invite(tx, call, invitation);
      });
      return { invitation: invitationMessage(row), inviteToken: token };
    },

    async getInvitation(request, call) {
      const row = await read(db, call, selectByKey(request, macs, call));
      const { selector } = request;
      if (!row) throw invitationNotFound(selector.case === "invitationId" ? selector.value : undefined);
      checkTenant(call.caller, call.actor, row.tenant_id);
      return { invitation: invitationMessage(row) };
    },

    async revokeInvitation({ tenantId, invitationId }, call) {
      const row = await transact(db, call, async (tx) => {
        if (!(await tx.maybeOne(lockInvitation(tenantId, invitationId)))) return invitationNotFound(invitationId);
        const before = await tx.one(selectInvitation(tenantId, invitationId));
        if (before.accepted_utc !== null) return refusal("INVITATION_ENDED", { invitation_id: invitationId });
        if (before.revoked_utc !== null) return before;
        const after = await tx.one(updateRevoked(tenantId, invitationId));
        await recordEvent(tx, call, invitationEvent("org.invitation.revoke", after));
        return after;
      });
      return { invitation: invitationMessage(row) };
    },
  } satisfies Partial<Handlers<typeof OrgService>>;
};
