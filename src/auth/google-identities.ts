import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { recordEvent } from "../audit/record.ts";
import { type Tx, transact } from "../db/transact.ts";
import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";
import type { GoogleAccount } from "./google.ts";
import { type IdentityRow, identityMessage, identityRow } from "./identities.ts";
import type { AuthParts } from "./parts.ts";
import { subjectKey } from "./provider-subjects.ts";
import { type UserRow, changeableUser, lockUser, userEvent } from "./users.ts";

/** Whose the account is in the tenant, which the key begins with. */
export const selectGoogleIdentity = (tenantId: string, subject: string) => sql.type(identityRow)`
  SELECT i.ident_id, i.user_id, i.ident_provider_code, i.provider_subject_key, i.email_verified_flag,
    i.phone_verified_flag, i.created_utc
  FROM user_identities i
  WHERE i.ident_provider_code = 'google' AND i.provider_subject_key = ${subjectKey(tenantId, subject)}`;

const insertGoogleIdentity = ({ tenant_id, user_id }: UserRow, { subject, emailVerified }: GoogleAccount) =>
  sql.type(identityRow)`
  INSERT INTO user_identities (ident_id, user_id, ident_provider_code, provider_subject_key, email_verified_flag)
  VALUES (${uuidv7()}::uuid, ${user_id}::uuid, 'google', ${subjectKey(tenant_id, subject)}, ${emailVerified})
  ON CONFLICT DO NOTHING
  RETURNING ident_id, user_id, ident_provider_code, provider_subject_key, email_verified_flag, phone_verified_flag,
    created_utc`;

/**
 * Links an account to a user whom the transaction has made or locked by `lockUser`; what is linked already stays as it is.
 * @returns IDENTITY_TAKEN where the user has another account, or the account another user.
 */
export const linkGoogle = async (
  tx: Tx,
  call: Call,
  user: UserRow,
  account: GoogleAccount,
): Promise<IdentityRow | Refusal> => {
  const present = await tx.maybeOne(selectGoogleIdentity(user.tenant_id, account.subject));
  if (present?.user_id === user.user_id) return present;
  const linked = await tx.maybeOne(insertGoogleIdentity(user, account));
  if (!linked) return refusal("IDENTITY_TAKEN");
  await recordEvent(tx, call, {
    ...userEvent("auth.identity.link", user.tenant_id, user.user_id),
    payload: { identity_id: linked.ident_id, provider: "google" },
  });
  return linked;
};

export const googleIdentityHandlers = ({ db, google }: AuthParts) =>
  ({
    async linkGoogleIdentity({ tenantId, userId, idToken, nonce }, call) {
      const account = await google.verify(call, idToken, nonce);
      const identity = await transact(db, call, async (tx) => {
        const user = changeableUser(await tx.maybeOne(lockUser(tenantId, userId)), userId);
        return user instanceof Refusal ? user : linkGoogle(tx, call, user, account);
      });
      return { identity: identityMessage(tenantId, identity) };
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
