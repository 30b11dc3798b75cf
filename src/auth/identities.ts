import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import { type AuthService, IdentityProvider, type IdentitySchema } from "../gen/auth/v1/auth_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { refusal } from "../rpc/refusal.ts";
import type { AuthParts } from "./parts.ts";
import { subjectOf } from "./provider-subjects.ts";
import { type UserRow, lockUser, selectUser, userEvent, userNotFound } from "./users.ts";

export const identityRow = z.object({
  ident_id: z.string(),
  user_id: z.string(),
  ident_provider_code: z.enum(["password", "google"]),
  provider_subject_key: z.string().nullable(),
  email_verified_flag: z.boolean(),
  phone_verified_flag: z.boolean(),
  created_utc: z.number(),
});
export type IdentityRow = z.output<typeof identityRow>;

const identityIdRow = z.object({ ident_id: z.string() });

/** Of a user that the caller has found in its tenant or locked, as in all statements here. */
const selectIdentities = (userId: string) => sql.type(identityRow)`
  SELECT i.ident_id, i.user_id, i.ident_provider_code, i.provider_subject_key, i.email_verified_flag,
    i.phone_verified_flag, i.created_utc
  FROM user_identities i WHERE i.user_id = ${userId}::uuid ORDER BY i.created_utc, i.ident_id`;

const selectIdentity = (userId: string, identityId: string) => sql.type(identityRow)`
  SELECT i.ident_id, i.user_id, i.ident_provider_code, i.provider_subject_key, i.email_verified_flag,
    i.phone_verified_flag, i.created_utc
  FROM user_identities i WHERE i.user_id = ${userId}::uuid AND i.ident_id = ${identityId}::uuid`;

/** A bulk load may have made identities that open nothing: they are no way in. */
const selectOtherWayIn = (userId: string, identityId: string) => sql.type(identityIdRow)`
  SELECT i.ident_id FROM user_identities i
  WHERE i.user_id = ${userId}::uuid AND i.ident_id <> ${identityId}::uuid
    AND (i.password_hash_text IS NOT NULL OR i.provider_subject_key IS NOT NULL)
  LIMIT 1`;

/** Of a user whom the transaction has made or locked, whether or not it has a password. */
export const upsertPasswordHash = (userId: string, hash: string) => sql.type(identityIdRow)`
  INSERT INTO user_identities (ident_id, user_id, ident_provider_code, password_hash_text)
  VALUES (${uuidv7()}::uuid, ${userId}::uuid, 'password', ${hash})
  ON CONFLICT (user_id, ident_provider_code) DO UPDATE SET password_hash_text = EXCLUDED.password_hash_text
  RETURNING ident_id`;

const deleteIdentity = (userId: string, identityId: string) => sql.type(identityIdRow)`
  DELETE FROM user_identities WHERE user_id = ${userId}::uuid AND ident_id = ${identityId}::uuid RETURNING ident_id`;

export const deletePasswordIdentity = (userId: string) => sql.type(identityIdRow)`
  DELETE FROM user_identities WHERE user_id = ${userId}::uuid AND ident_provider_code = 'password'
  RETURNING ident_id`;

export const deleteIdentities = (userId: string) => sql.type(identityIdRow)`
  DELETE FROM user_identities WHERE user_id = ${userId}::uuid RETURNING ident_id`;

/** Takes a way in from a locked user. */
const unlink = async (tx: Tx, call: Call, { tenant_id, user_id }: UserRow, identity: IdentityRow): Promise<void> => {
  await tx.one(deleteIdentity(user_id, identity.ident_id));
  await recordEvent(tx, call, {
    ...userEvent("auth.identity.unlink", tenant_id, user_id),
    payload: { identity_id: identity.ident_id, provider: identity.ident_provider_code },
  });
};

/** Takes the accounts of providers from a locked user who has another way in. */
export const unlinkProviders = async (tx: Tx, call: Call, user: UserRow): Promise<void> => {
  for (const identity of await tx.any(selectIdentities(user.user_id))) {
    if (identity.ident_provider_code !== "password") await unlink(tx, call, user, identity);
  }
};

const PROVIDERS = { password: IdentityProvider.PASSWORD, google: IdentityProvider.GOOGLE } as const;

export const identityMessage = (tenantId: string, row: IdentityRow): MessageInitShape<typeof IdentitySchema> => ({
  identityId: row.ident_id,
  userId: row.user_id,
  provider: PROVIDERS[row.ident_provider_code],
  ...(row.provider_subject_key !== null && { providerSubject: subjectOf(tenantId, row.provider_subject_key) }),
  emailVerified: row.email_verified_flag,
  phoneVerified: row.phone_verified_flag,
  createTime: timestampFromMs(row.created_utc),
});

export const identityHandlers = ({ db, channels }: AuthParts) =>
  ({
    async listIdentities({ tenantId, userId }, call) {
      const rows = await read(db, call, async (connection) => {
        const user = await connection.maybeOne(selectUser(tenantId, userId));
        return user && connection.any(selectIdentities(userId));
      });
      if (!rows) throw userNotFound(userId);
      return { identities: rows.map((row) => identityMessage(tenantId, row)) };
    },

    async unlinkIdentity({ tenantId, userId, identityId }, call) {
      await transact(db, call, async (tx) => {
        const user = await tx.maybeOne(lockUser(tenantId, userId));
        if (!user) return userNotFound(userId);
        const identity = await tx.maybeOne(selectIdentity(userId, identityId));
        if (!identity) return refusal("IDENTITY_NOT_FOUND", { identity_id: identityId });
        // One who has no identity left gets in by a code. A later change of the contact leaves that way open: a code
        // also goes to a contact that is not verified, and the login proves it.
        const hasCode =
          (user.email_verified_utc !== null && channels.has("email")) ||
          (user.phone_verified_utc !== null && (channels.has("sms") || channels.has("whatsapp")));
        if (!hasCode && !(await tx.maybeOne(selectOtherWayIn(userId, identityId)))) return refusal("LAST_IDENTITY");
        await unlink(tx, call, user, identity);
        return undefined;
      });
      return {};
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
