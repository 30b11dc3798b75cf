import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { changedMeanwhile, transactAgain } from "../db/looks.ts";
import type { Tx } from "../db/transact.ts";
import { unlessTaken } from "../db/unless-taken.ts";
import type { AuthService, CreateUserRequest, UpdateUserRequest } from "../gen/auth/v1/auth_pb.ts";
import { missingTenant } from "../org/tenants.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal, invalid, refusal } from "../rpc/refusal.ts";
import { maskedFields } from "../rpc/update-mask.ts";
import { type ContactKind, readContact } from "./contacts.ts";
import { upsertPasswordHash } from "./identities.ts";
import { deleteNobodysCodes, endCodesTo } from "./otp-codes.ts";
import type { AuthParts } from "./parts.ts";
import { checkNewPassword } from "./password-rules.ts";
import { type UserRow, changeableUser, lockUser, userEvent, userMessage, userRow } from "./users.ts";

const takenRow = z.object({ email_taken: z.boolean(), phone_taken: z.boolean() });

/** What can be said of a user, by proto name; null is cleared or never said. */
interface Profile {
  readonly email: string | null;
  readonly phone: string | null;
  readonly display_name: string | null;
}

interface NewUser {
  readonly tenantId: string;
  readonly userId: string;
  readonly profile: Profile;
  /** Of its password, where it has one. */
  readonly hash: string | undefined;
  /** Contacts are unverified but for this. */
  readonly isEmailVerified?: boolean;
  /** What made it, where that was no CreateUser. */
  readonly method?: string;
}

const profileOf = (row: UserRow): Profile => ({
  email: row.email_addr,
  phone: row.phone_e164,
  display_name: row.display_label,
});

/** Of any tenant: an id is unique without one. */
const selectUserAnywhere = (userId: string) => sql.type(userRow)`
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc
  FROM users u WHERE u.user_id = ${userId}::uuid`;

const insertUser = ({ tenantId, userId, profile, isEmailVerified = false }: NewUser) => sql.type(userRow)`
  INSERT INTO users (user_id, tenant_id, email_addr, phone_e164, display_label, user_state_code, email_verified_utc)
  VALUES (${userId}::uuid, ${tenantId}::uuid, ${profile.email}, ${profile.phone}, ${profile.display_name}, 'active',
    CASE WHEN ${isEmailVerified}::boolean THEN now() END)
  ON CONFLICT DO NOTHING
  RETURNING user_id, tenant_id, email_addr, phone_e164, display_label, user_state_code, email_verified_utc,
    phone_verified_utc, erased_utc, created_utc, updated_utc`;

const selectTaken = (tenantId: string, userId: string, { email, phone }: Profile) =>
  sql.type(takenRow)`
  SELECT
    EXISTS (SELECT 1 FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.email_addr = ${email}::text
      AND u.user_id <> ${userId}::uuid) AS email_taken,
    EXISTS (SELECT 1 FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.phone_e164 = ${phone}::text
      AND u.user_id <> ${userId}::uuid) AS phone_taken`;

/** A contact that stays the same stays verified. */
const updateProfile = (tenantId: string, userId: string, profile: Profile) => sql.type(userRow)`
  UPDATE users SET email_addr = ${profile.email}::text, phone_e164 = ${profile.phone}::text,
    display_label = ${profile.display_name}::text,
    email_verified_utc = CASE WHEN email_addr = ${profile.email}::text THEN email_verified_utc END,
    phone_verified_utc = CASE WHEN phone_e164 = ${profile.phone}::text THEN phone_verified_utc END,
    updated_utc = clock_timestamp()
  WHERE tenant_id = ${tenantId}::uuid AND user_id = ${userId}::uuid
  RETURNING user_id, tenant_id, email_addr, phone_e164, display_label, user_state_code, email_verified_utc,
    phone_verified_utc, erased_utc, created_utc, updated_utc`;

/** Which contact of the profile another user has, if one still has it. */
const takenContact = async (tx: Tx, tenantId: string, userId: string, profile: Profile) => {
  const taken = await tx.one(selectTaken(tenantId, userId, profile));
  if (taken.email_taken) return refusal("EMAIL_TAKEN");
  return taken.phone_taken ? refusal("PHONE_TAKEN") : undefined;
};

/** The answer to a create whose id or contact was there already. What the request leaves out is not compared. */
const created = async (tx: Tx, tenantId: string, userId: string, profile: Profile) => {
  const present = await tx.maybeOne(selectUserAnywhere(userId));
  if (!present) return (await takenContact(tx, tenantId, userId, profile)) ?? changedMeanwhile;
  const has = profileOf(present);
  const isSame = (name: keyof Profile) => profile[name] === null || profile[name] === has[name];
  return present.tenant_id === tenantId.toLowerCase() && isSame("email") && isSame("phone") && isSame("display_name")
    ? present
    : refusal("USER_ID_TAKEN", { user_id: userId });
};

/** Looks first: two who swap their contacts would wait for each other. */
const writeProfile = async (tx: Tx, tenantId: string, userId: string, profile: Profile) =>
  (await takenContact(tx, tenantId, userId, profile)) ??
  (await unlessTaken(tx, updateProfile(tenantId, userId, profile))) ??
  // Whoever took it meanwhile may have let go of it since.
  (await takenContact(tx, tenantId, userId, profile)) ??
  changedMeanwhile;

const contactOf = (kind: ContactKind, text: string | undefined) =>
  text === undefined ? null : readContact(kind, text).text;

/** @throws INVALID_REQUEST for what is no contact, or where there is none. */
const readProfile = ({ email, phone, displayName }: CreateUserRequest): Profile => {
  if (email === undefined && phone === undefined) {
    const description = "one of email and phone must be there";
    throw invalid({ field: "email", description }, { field: "phone", description });
  }
  return { email: contactOf("email", email), phone: contactOf("phone", phone), display_name: displayName ?? null };
};

/** What an update says of a user: fields that it does not change are not there. */
const readChanges = ({ email, phone, displayName, updateMask }: UpdateUserRequest): Partial<Profile> => {
  const fields = maskedFields(updateMask, { email, phone, display_name: displayName }, []);
  return {
    ...(fields.has("email") && { email: contactOf("email", email || undefined) }),
    ...(fields.has("phone") && { phone: contactOf("phone", phone || undefined) }),
    ...(fields.has("display_name") && { display_name: displayName || null }),
  };
};

const namesOf = (profile: Partial<Profile>) => Object.keys(profile) as (keyof Profile)[];

/**
 * Makes an active user in the transaction of a mutation, and records it.
 * @returns undefined, with nothing written, where the id or a contact is there already.
 */
export const makeUser = async (tx: Tx, call: Call, user: NewUser): Promise<UserRow | undefined> => {
  const { tenantId, userId, profile, hash, method } = user;
  const inserted = await tx.maybeOne(insertUser(user));
  if (!inserted) return undefined;
  if (hash !== undefined) await tx.one(upsertPasswordHash(userId, hash));
  const said = namesOf(profile).filter((name) => profile[name] !== null);
  const payload = { fields: hash === undefined ? said : [...said, "password"], ...(method && { method }) };
  await recordEvent(tx, call, { ...userEvent("auth.user.create", tenantId, userId), payload });
  return inserted;
};

/** Changes a locked user; what changes nothing writes nothing. */
const changeProfile = async (tx: Tx, call: Call, before: UserRow, changes: Partial<Profile>) => {
  const { tenant_id: tenantId, user_id: userId } = before;
  const old = profileOf(before);
  const profile = { ...old, ...changes };
  const fields = namesOf(profile).filter((name) => profile[name] !== old[name]);
  const contacts = fields.filter((name) => name !== "display_name");
  if (fields.length === 0) return before;
  if (contacts.length > 0 && profile.email === null && profile.phone === null) return refusal("LAST_CONTACT");
  const row = await writeProfile(tx, tenantId, userId, profile);
  if (row === changedMeanwhile || row instanceof Refusal) return row;
  const left = contacts.map((name) => old[name]).filter((text) => text !== null);
  if (left.length > 0) {
    await tx.any(endCodesTo(tenantId, userId, left));
    await tx.any(deleteNobodysCodes(tenantId, left));
  }
  await recordEvent(tx, call, { ...userEvent("auth.user.update", tenantId, userId), payload: { fields } });
  return row;
};

export const userProfileHandlers = ({ db, passwords }: AuthParts) =>
  ({
    async createUser(request, call) {
      const { tenantId, userId = uuidv7(), password } = request;
      const profile = readProfile(request);
      const own = Object.values(profile);
      const hash =
        password === undefined
          ? undefined
          : await passwords.hash(call, await checkNewPassword(password, "password", own));
      // Whoever had the id or contact may have let go of it since it was in the way.
      const row = await transactAgain(db, call, async (tx) => {
        const missing = await missingTenant(tx, tenantId);
        if (missing) return missing;
        const made = await makeUser(tx, call, { tenantId, userId, profile, hash });
        return made ?? created(tx, tenantId, userId, profile);
      });
      return { user: userMessage(row) };
    },

    async updateUser(request, call) {
      const { tenantId, userId } = request;
      const changes = readChanges(request);
      const row = await transactAgain(db, call, async (tx) => {
        const before = changeableUser(await tx.maybeOne(lockUser(tenantId, userId)), userId);
        return before instanceof Refusal ? before : changeProfile(tx, call, before, changes);
      });
      return { user: userMessage(row) };
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
