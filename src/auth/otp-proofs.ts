import { sql } from "slonik";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import type { Call } from "../rpc/call.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import type { Client } from "./clients.ts";
import type { ContactKind } from "./contacts.ts";
import { type Origin, originOf } from "./login-networks.ts";
import {
  type AttemptRow,
  type Channel,
  type PurposeCode,
  consumeCode,
  countAttempt,
  isRightCode,
  otpChannel,
} from "./otp-codes.ts";
import type { AuthParts } from "./parts.ts";
import { type UserRow, lockUser, userEvent, userRow } from "./users.ts";

/** A tenant, and the code in it that was named, if there is one. */
const targetRow = z.object({
  tenant_state_code: z.enum(["active", "suspended"]),
  destination_text: z.string().nullable(),
  channel_code: otpChannel.nullable(),
  network_is_known: z.boolean(),
});
type TargetRow = z.output<typeof targetRow>;

const selectTarget = (tenantId: string, otpId: string, { tags, lifeMs }: Origin) => sql.type(targetRow)`
  SELECT t.tenant_state_code, o.destination_text, o.channel_code,
    EXISTS (
      SELECT FROM login_networks n
      WHERE n.user_id = o.user_id AND n.network_hash = ANY(${sql.array(tags, "text")})
        AND n.last_login_utc > now() - ${lifeMs}::float8 * interval '1 millisecond'
    ) AS network_is_known
  FROM tenants t
  LEFT JOIN otp_codes o ON o.tenant_id = t.tenant_id AND o.otp_id = ${otpId}::uuid
  WHERE t.tenant_id = ${tenantId}::uuid`;

const updateVerified = ({ tenant_id, user_id }: UserRow, kind: ContactKind) => sql.type(userRow)`
  UPDATE users SET
    email_verified_utc = CASE WHEN ${kind}::text = 'email' THEN clock_timestamp() ELSE email_verified_utc END,
    phone_verified_utc = CASE WHEN ${kind}::text = 'phone' THEN clock_timestamp() ELSE phone_verified_utc END,
    updated_utc = clock_timestamp()
  WHERE tenant_id = ${tenant_id}::uuid AND user_id = ${user_id}::uuid
  RETURNING user_id, tenant_id, email_addr, phone_e164, display_label, user_state_code, email_verified_utc,
    phone_verified_utc, erased_utc, created_utc, updated_utc`;

/** A code that somebody typed, and what it shall allow. */
interface Guess<P, T> {
  readonly tenantId: string;
  readonly otpId: string;
  readonly code: string;
  readonly purposes: readonly PurposeCode[];
  readonly client: Client;
  /** Whether a session comes of it, which a suspended tenant has none of. */
  readonly signsIn: boolean;
  /** Costly work for a code that is right, before it is spent: what it refuses leaves the code unspent. */
  prepare(userId: string): Promise<P>;
  /** Runs in the transaction that spends the code, as `transact` says, with the user locked and its contact verified. */
  proven(tx: Tx, proof: Proof, prepared: P): Promise<T | Refusal>;
}

export interface Proof {
  readonly user: UserRow;
  /** The contact was not verified before: whoever set the account up need not be who has it. */
  readonly isNewlyVerified: boolean;
  /** Nor was any other: nobody had proven to be the user at all. */
  readonly isFirst: boolean;
}

const WRONG = Symbol();

const kindOf = (channel: Channel): ContactKind => (channel === "email" ? "email" : "phone");

const identifierOf = (target: TargetRow | null) =>
  target?.destination_text && target.channel_code
    ? `${kindOf(target.channel_code)}:${target.destination_text}`
    : undefined;

const isStillTheirs = (user: UserRow, kind: ContactKind, { destination_text }: AttemptRow) =>
  user.user_state_code === "active" && (kind === "email" ? user.email_addr : user.phone_e164) === destination_text;

const verifyContact = async (tx: Tx, call: Call, user: UserRow, kind: ContactKind): Promise<Proof> => {
  const verifiedUtc = kind === "email" ? user.email_verified_utc : user.phone_verified_utc;
  if (verifiedUtc !== null) return { user, isNewlyVerified: false, isFirst: false };
  const verified = await tx.one(updateVerified(user, kind));
  const event = userEvent("auth.contact.verify", user.tenant_id, user.user_id);
  await recordEvent(tx, call, { ...event, payload: { fields: [`${kind}_verified`] } });
  const isFirst = user.email_verified_utc === null && user.phone_verified_utc === null;
  return { user: verified, isNewlyVerified: true, isFirst };
};

/** Spends a right code of a user who may use it, and does what it allows. */
const spend = async <P, T>(
  tx: Tx,
  call: Call,
  guess: Guess<P, T>,
  attempt: AttemptRow,
  userId: string,
  prepared: P,
): Promise<T | Refusal | typeof WRONG> => {
  const user = await tx.maybeOne(lockUser(guess.tenantId, userId));
  const kind = kindOf(attempt.channel_code);
  if (!user || !isStillTheirs(user, kind, attempt)) return WRONG;
  if (!(await tx.maybeOne(consumeCode(guess.tenantId, attempt.otp_id)))) return WRONG;
  return guess.proven(tx, await verifyContact(tx, call, user, kind), prepared);
};

/** Undefined where the code is wrong, for whatever reason. */
const compareAndSpend = async <P, T>({ db, macs }: AuthParts, call: Call, guess: Guess<P, T>) => {
  // By itself: what is counted stays so, whatever becomes of the rest, and nobody waits for a user's lock to be told no.
  const attempt = await transact(db, call, (tx) =>
    tx.maybeOne(countAttempt(guess.tenantId, guess.otpId, guess.purposes)),
  );
  if (!attempt || !isRightCode(macs, attempt, guess.code) || attempt.user_id === null) return undefined;
  const userId = attempt.user_id;
  const prepared = await guess.prepare(userId);
  const result = await transact(db, call, (tx) => spend(tx, call, guess, attempt, userId, prepared));
  return result === WRONG ? undefined : { result };
};

/**
 * Compares a code that was sent and then does what it allows, in the transaction that spends it.
 *
 * A wrong, spent, expired or unknown code, one of another purpose, tenant or former contact, and one of an inactive user:
 * one answer. A code of nobody is counted and compared as one of a user is.
 * @throws INVALID_CODE, RATE_LIMITED, TENANT_SUSPENDED
 */
export const proveCode = async <P, T>(
  parts: AuthParts,
  call: Call,
  guess: Guess<P, T>,
): Promise<Exclude<T, Refusal>> => {
  const { tenantId, otpId, client } = guess;
  const select = selectTarget(tenantId, otpId, originOf(parts, tenantId, client));
  const target = await read(parts.db, call, (connection) => connection.maybeOne(select));
  if (guess.signsIn && target?.tenant_state_code === "suspended") {
    throw refusal("TENANT_SUSPENDED", { tenant_id: tenantId });
  }
  const attempt = {
    act: "code",
    tenantId,
    identifier: identifierOf(target),
    client,
    networkIsKnown: target?.network_is_known ?? false,
  } as const;
  const proof = await parts.throttles.during(call, attempt, () => compareAndSpend(parts, call, guess));
  if (!proof) throw refusal("INVALID_CODE");
  return proof.result;
};
