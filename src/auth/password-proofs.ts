import { sql } from "slonik";
import { z } from "zod";
import { type Tx, read, transact } from "../db/transact.ts";
import type { Call } from "../rpc/call.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import type { Client } from "./clients.ts";
import type { Contact } from "./contacts.ts";
import { upsertPasswordHash } from "./identities.ts";
import type { Origin } from "./login-networks.ts";
import type { AuthParts } from "./parts.ts";
import type { Verdict } from "./passwords.ts";
import { type UserRow, lockUser } from "./users.ts";

/** A tenant, and the user in it that was named, if there is one. */
const namedRow = z.object({
  tenant_state_code: z.enum(["active", "suspended"]),
  user_id: z.string().nullable(),
  user_state_code: z.enum(["active", "inactive"]).nullable(),
  email_addr: z.string().nullable(),
  phone_e164: z.string().nullable(),
  display_label: z.string().nullable(),
  password_hash_text: z.string().nullable(),
  network_is_known: z.boolean(),
});
export type NamedRow = z.output<typeof namedRow>;

const selectByEmail = (tenantId: string, email: string, { tags, lifeMs }: Origin) => sql.prepared(
  "select-named-by-email",
  namedRow,
)`
  SELECT t.tenant_state_code, u.user_id, u.user_state_code, u.email_addr, u.phone_e164, u.display_label,
    i.password_hash_text,
    EXISTS (
      SELECT FROM login_networks n
      WHERE n.user_id = u.user_id AND n.network_hash = ANY(${sql.array(tags, "text")})
        AND n.last_login_utc > now() - ${lifeMs}::float8 * interval '1 millisecond'
    ) AS network_is_known
  FROM tenants t
  LEFT JOIN users u ON u.tenant_id = t.tenant_id AND u.email_addr = ${email}
  LEFT JOIN user_identities i ON i.user_id = u.user_id AND i.ident_provider_code = 'password'
  WHERE t.tenant_id = ${tenantId}::uuid`;

const selectByPhone = (tenantId: string, phone: string, { tags, lifeMs }: Origin) => sql.prepared(
  "select-named-by-phone",
  namedRow,
)`
  SELECT t.tenant_state_code, u.user_id, u.user_state_code, u.email_addr, u.phone_e164, u.display_label,
    i.password_hash_text,
    EXISTS (
      SELECT FROM login_networks n
      WHERE n.user_id = u.user_id AND n.network_hash = ANY(${sql.array(tags, "text")})
        AND n.last_login_utc > now() - ${lifeMs}::float8 * interval '1 millisecond'
    ) AS network_is_known
  FROM tenants t
  LEFT JOIN users u ON u.tenant_id = t.tenant_id AND u.phone_e164 = ${phone}
  LEFT JOIN user_identities i ON i.user_id = u.user_id AND i.ident_provider_code = 'password'
  WHERE t.tenant_id = ${tenantId}::uuid`;

export const selectByContact = (tenantId: string, { kind, text }: Contact, origin: Origin) =>
  kind === "email" ? selectByEmail(tenantId, text, origin) : selectByPhone(tenantId, text, origin);

export const selectById = (tenantId: string, userId: string, { tags, lifeMs }: Origin) => sql.prepared(
  "select-named-by-id",
  namedRow,
)`
  SELECT t.tenant_state_code, u.user_id, u.user_state_code, u.email_addr, u.phone_e164, u.display_label,
    i.password_hash_text,
    EXISTS (
      SELECT FROM login_networks n
      WHERE n.user_id = u.user_id AND n.network_hash = ANY(${sql.array(tags, "text")})
        AND n.last_login_utc > now() - ${lifeMs}::float8 * interval '1 millisecond'
    ) AS network_is_known
  FROM tenants t
  LEFT JOIN users u ON u.tenant_id = t.tenant_id AND u.user_id = ${userId}::uuid
  LEFT JOIN user_identities i ON i.user_id = u.user_id AND i.ident_provider_code = 'password'
  WHERE t.tenant_id = ${tenantId}::uuid`;

const hashRow = z.object({ password_hash_text: z.string().nullable() });

const selectHash = (userId: string) => sql.prepared("select-password-hash", hashRow)`
  SELECT i.password_hash_text FROM user_identities i
  WHERE i.user_id = ${userId}::uuid AND i.ident_provider_code = 'password'`;

/** Somebody who says he is a user of a tenant, and shows a password. */
interface Claim<T> {
  readonly tenantId: string;
  readonly client: Client;
  readonly password: string;
  /** Which user. It is read again where the hash changed while the password was verified, or the user is it no more. */
  readonly select: ReturnType<typeof selectById>;
  /** Whether that is still the user: a contact may pass to somebody else. */
  isNamed(user: UserRow): boolean;
  /** Under which name tries are counted. */
  identifier(named: NamedRow | undefined): string;
  /** Refuses what has nothing to do with the password. */
  check?(named: NamedRow | undefined): void;
  /** The hash that is to be stored from now on, where it is to be another. */
  replacement(named: NamedRow, verdict: Verdict): Promise<string | undefined>;
  /** Runs in the transaction, as `transact` says, once the user is locked and found as it was when it was verified. */
  proven(tx: Tx, user: UserRow): Promise<T | Refusal>;
}

// A login that re-hashes changes the hash once for all that come with it; who still differs then has an old password.
const ROUNDS = 2;
const CHANGED = Symbol();

const prove = async <T>(
  tx: Tx,
  claim: Claim<T>,
  verified: NamedRow,
  userId: string,
  replacement: string | undefined,
) => {
  const { tenantId } = claim;
  // Whatever ends sessions or changes the password waits for us or has been before us: nothing is decided by what was
  // read before the lock.
  const user = await tx.maybeOne(lockUser(tenantId, userId));
  if (user?.user_state_code !== "active") return refusal("INVALID_CREDENTIALS");
  if (!claim.isNamed(user)) return CHANGED;
  const present = await tx.maybeOne(selectHash(userId));
  if (present?.password_hash_text !== verified.password_hash_text) return CHANGED;
  if (replacement !== undefined) await tx.one(upsertPasswordHash(userId, replacement));
  return claim.proven(tx, user);
};

/** Undefined where the password is wrong. */
const verifyAndProve = async <T>(
  { db, passwords }: AuthParts,
  call: Call,
  claim: Claim<T>,
  named: NamedRow | undefined,
  find: () => Promise<NamedRow | undefined>,
) => {
  for (let round = 1; round <= ROUNDS; round++) {
    const hash = named?.user_state_code === "active" ? named.password_hash_text : null;
    const verdict = await passwords.verify(call, claim.password, hash);
    if (!named?.user_id || !verdict.matches) return undefined;
    const [verified, userId] = [named, named.user_id];
    const replacement = await claim.replacement(verified, verdict);
    const result = await transact(db, call, (tx) => prove(tx, claim, verified, userId, replacement));
    if (result !== CHANGED) return { result };
    named = await find();
  }
  return undefined;
};

/**
 * Verifies a password and then does what it allows, in one transaction in which it is still the password.
 *
 * Wrong password, unknown user, inactive user and user without a password: one answer, after one hash.
 * @throws INVALID_CREDENTIALS, RATE_LIMITED, OVERLOADED
 */
export const provePassword = async <T>(parts: AuthParts, call: Call, claim: Claim<T>): Promise<Exclude<T, Refusal>> => {
  const find = async () => (await read(parts.db, call, (connection) => connection.maybeOne(claim.select))) ?? undefined;
  const named = await find();
  claim.check?.(named);
  const attempt = {
    act: "login",
    tenantId: claim.tenantId,
    identifier: claim.identifier(named),
    client: claim.client,
    networkIsKnown: named?.network_is_known ?? false,
  } as const;
  const work = () => verifyAndProve(parts, call, claim, named, find);
  const proof = await parts.throttles.during(call, attempt, work);
  if (!proof) throw refusal("INVALID_CREDENTIALS");
  return proof.result;
};
