import { type CommonQueryMethods, sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { checkNewPassword } from "../auth/password-rules.ts";
import { makeUser } from "../auth/user-profiles.ts";
import { changedMeanwhile, transactAgain } from "../db/looks.ts";
import { type Tx, read } from "../db/transact.ts";
import { type AcceptInvitationRequest, InvitationState, type OrgService } from "../gen/org/v1/org_pb.ts";
import type { Call } from "../rpc/call.ts";
import { checkTenant } from "../rpc/caller.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal, invalid, refusal } from "../rpc/refusal.ts";
import { type AssignmentRow, assignHeld, assignmentMessage } from "./assignments.ts";
import { holdNode, holdRole } from "./holds.ts";
import {
  type InvitationRow,
  findByToken,
  invitationEvent,
  invitationMessage,
  invitationNotFound,
  invitationRow,
  lockInvitation,
  selectInvitation,
  stateOf,
} from "./invitations.ts";
import type { OrgParts } from "./parts.ts";
import { selectTenantState } from "./tenants.ts";

const ownerRow = z.object({ user_id: z.string(), user_state_code: z.enum(["active", "inactive"]) });
type OwnerRow = z.output<typeof ownerRow>;

const selectOwner = ({ tenant_id, email_addr, phone_e164 }: InvitationRow) => sql.type(ownerRow)`
  SELECT u.user_id, u.user_state_code FROM users u
  WHERE u.tenant_id = ${tenant_id}::uuid AND (u.email_addr = ${email_addr}::text OR u.phone_e164 = ${phone_e164}::text)
  LIMIT 1`;

/** Keeps the contact with its user, and the user from being deactivated or erased. */
const shareOwner = ({ tenant_id, email_addr, phone_e164 }: InvitationRow) => sql.type(ownerRow)`
  SELECT u.user_id, u.user_state_code FROM users u
  WHERE u.tenant_id = ${tenant_id}::uuid AND (u.email_addr = ${email_addr}::text OR u.phone_e164 = ${phone_e164}::text)
  LIMIT 1
  FOR SHARE`;

/** None where it has expired, or its tenant is suspended, by now. */
const updateAccepted = ({ tenant_id, invite_id }: InvitationRow, userId: string) =>
  sql.type(invitationRow)`
  UPDATE invitations SET accepted_utc = statement_timestamp(), accepted_user_id = ${userId}::uuid
  WHERE tenant_id = ${tenant_id}::uuid AND invite_id = ${invite_id}::uuid AND expiry_utc > statement_timestamp()
    AND EXISTS (SELECT FROM tenants t WHERE t.tenant_id = ${tenant_id}::uuid AND t.tenant_state_code = 'active')
  RETURNING invite_id, tenant_id, email_addr, phone_e164, invited_by_user_id, target_role_id, target_org_node_id,
    invite_token_hash_text, expiry_utc, accepted_utc, revoked_utc, created_utc, false AS expired`;

/** What an invitation and the user of its contact are, at one moment. */
interface Look {
  readonly invitation: InvitationRow;
  readonly owner: OwnerRow | null;
}

/** What a user is made of where nobody has the contact. */
interface NewcomerRequest {
  readonly displayName: string | null;
  readonly hash: string | undefined;
}

interface Accepted {
  readonly userId: string;
  readonly invitation: InvitationRow;
  readonly assignment: AssignmentRow | undefined;
}

const refuseEnded = async (db: CommonQueryMethods, invitation: InvitationRow): Promise<Refusal | undefined> => {
  const { tenant_id, invite_id, email_addr, phone_e164 } = invitation;
  const tenant = await db.one(selectTenantState(tenant_id));
  if (tenant.tenant_state_code === "suspended") return refusal("TENANT_SUSPENDED", { tenant_id });
  const state = stateOf(invitation);
  if (state === InvitationState.EXPIRED) return refusal("INVITATION_EXPIRED", { invitation_id: invite_id });
  // An erasure takes the contact, and with it whom the invitation is for.
  const isOpen = state === InvitationState.PENDING && (email_addr !== null || phone_e164 !== null);
  return isOpen ? undefined : refusal("INVITATION_ENDED", { invitation_id: invite_id });
};

const refuseOwner = (call: Call, owner: OwnerRow | null, hasPassword: boolean): Refusal | undefined => {
  if (!owner) return undefined;
  if (owner.user_state_code !== "active" || call.actor?.userId !== owner.user_id) return refusal("LOGIN_REQUIRED");
  const description = "must not be there, since a user has this contact";
  return hasPassword ? invalid({ field: "password", description }) : undefined;
};

/** Why what was seen cannot be accepted. It only reads: it is asked before anything is locked, and again after. */
const refuse = async (db: CommonQueryMethods, call: Call, { invitation, owner }: Look, hasPassword: boolean) =>
  (await refuseEnded(db, invitation)) ?? refuseOwner(call, owner, hasPassword);

/** Locks all that accepting depends on, in the order of all locks, and looks again. */
const lockAndLook = async (tx: Tx, before: InvitationRow) => {
  const { tenant_id, invite_id, target_role_id, target_org_node_id } = before;
  const held = await tx.maybeOne(shareOwner(before));
  const missing =
    (target_role_id === null ? undefined : await holdRole(tx, tenant_id, target_role_id)) ??
    (target_org_node_id === null ? undefined : await holdNode(tx, tenant_id, target_org_node_id));
  await tx.one(lockInvitation(tenant_id, invite_id));
  const invitation = await tx.one(selectInvitation(tenant_id, invite_id));
  const owner = await tx.maybeOne(selectOwner(invitation));
  return owner?.user_id === held?.user_id ? { invitation, owner, missing } : changedMeanwhile;
};

/** Also undefined where somebody else took the contact meanwhile. */
const makeNewcomer = (tx: Tx, call: Call, invitation: InvitationRow, { displayName, hash }: NewcomerRequest) => {
  const { tenant_id: tenantId, email_addr: email, phone_e164: phone } = invitation;
  const profile = { email, phone, display_name: displayName };
  return makeUser(tx, call, { tenantId, userId: uuidv7(), profile, hash, method: "invitation" });
};

/** The assignment that the invitation is for; undefined where it names no role. */
const assignTarget = async (tx: Tx, call: Call, invitation: InvitationRow, userId: string) => {
  const { tenant_id: tenantId, target_role_id: roleId, target_org_node_id: nodeId } = invitation;
  if (roleId === null || nodeId === null) return undefined;
  const target = { tenantId, userId, nodeId, roleId, startUs: null, endUs: null };
  const assignment = await assignHeld(tx, call, { assignmentId: uuidv7(), ...target });
  // Nothing has its id yet: thrown, since the user and the end of the invitation are written already.
  if (assignment instanceof Refusal) throw assignment;
  return assignment;
};

const accept = async (
  tx: Tx,
  call: Call,
  before: InvitationRow,
  newcomer: NewcomerRequest,
): Promise<Accepted | Refusal | typeof changedMeanwhile> => {
  const seen = await lockAndLook(tx, before);
  if (seen === changedMeanwhile) return changedMeanwhile;
  const { invitation, owner, missing } = seen;
  const refused = (await refuse(tx, call, seen, newcomer.hash !== undefined)) ?? missing;
  if (refused) return refused;
  const user = owner ?? (await makeNewcomer(tx, call, invitation, newcomer));
  if (!user) return changedMeanwhile;
  const userId = user.user_id;
  const assignment = await assignTarget(tx, call, invitation, userId);
  const accepted = await tx.maybeOne(updateAccepted(invitation, userId));
  if (!accepted) {
    // Somebody held the contact until the invitation had expired, or its tenant was suspended. Thrown, as above.
    const now = await tx.one(selectInvitation(invitation.tenant_id, invitation.invite_id));
    throw (await refuseEnded(tx, now)) ?? refusal("INVITATION_EXPIRED", { invitation_id: invitation.invite_id });
  }
  const payload = { user_id: userId, ...(assignment && { assignment_id: assignment.assignment_id }) };
  await recordEvent(tx, call, { ...invitationEvent("org.invitation.accept", accepted), payload });
  return { userId, invitation: accepted, assignment };
};

export const acceptingInvitationHandlers = ({ db, macs, passwords }: OrgParts) => {
  /** Before a password is hashed: only who shows the token of an invitation that is open has that done. */
  const find = async ({ inviteToken, password }: AcceptInvitationRequest, call: Call) => {
    const found = await read(db, call, async (connection) => {
      const invitation = await findByToken(connection, macs, call, inviteToken);
      if (!invitation) return invitationNotFound(undefined);
      // The request names no tenant: it is the invitation's.
      checkTenant(call.caller, call.actor, invitation.tenant_id);
      const owner = await connection.maybeOne(selectOwner(invitation));
      // Looked at after its owner, whom another's acceptance may just have made.
      const now = await connection.one(selectInvitation(invitation.tenant_id, invitation.invite_id));
      return (await refuse(connection, call, { invitation: now, owner }, password !== undefined)) ?? now;
    });
    if (found instanceof Refusal) throw found;
    return found;
  };

  const hashOf = async (call: Call, { password, displayName }: AcceptInvitationRequest, invitation: InvitationRow) => {
    if (password === undefined) return undefined;
    const own = [invitation.email_addr, invitation.phone_e164, displayName];
    return passwords.hash(call, await checkNewPassword(password, "password", own));
  };

  return {
    async acceptInvitation(request, call) {
      const before = await find(request, call);
      const hash = await hashOf(call, request, before);
      const newcomer = { displayName: request.displayName ?? null, hash };
      const look = (tx: Tx) => accept(tx, call, before, newcomer);
      const { userId, invitation, assignment } = await transactAgain(db, call, look);
      return {
        userId,
        invitation: invitationMessage(invitation),
        ...(assignment && { assignment: assignmentMessage(assignment) }),
      };
    },
  } satisfies Partial<Handlers<typeof OrgService>>;
};
