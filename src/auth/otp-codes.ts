import { sql } from "slonik";
import { z } from "zod";
import type { Macs } from "../macs.ts";

const newCodeRow = z.object({ created_utc: z.number(), expiry_utc: z.number() });
const otpIdRow = z.object({ otp_id: z.string() });

const CODES = 1_000_000n;

export const otpChannel = z.enum(["email", "sms", "whatsapp"]);
export type Channel = z.output<typeof otpChannel>;

export const otpPurpose = z.enum(["login", "verify_email", "verify_phone", "reset_password"]);
export type PurposeCode = z.output<typeof otpPurpose>;

/** A code that may still be right: counted, not yet compared. */
const attemptRow = z.object({
  otp_id: z.string(),
  user_id: z.string().nullable(),
  destination_text: z.string(),
  channel_code: otpChannel,
  purpose_code: otpPurpose,
  code_hash_text: z.string(),
});
export type AttemptRow = z.output<typeof attemptRow>;

export interface NewCode {
  readonly otpId: string;
  readonly tenantId: string;
  /** Null where the destination is nobody's: such a code is written all the same, and never right. */
  readonly userId: string | null;
  readonly destination: string;
  readonly channelCode: Channel;
  readonly purposeCode: PurposeCode;
  readonly hash: string;
  readonly ttlMs: number;
  readonly attemptMax: number;
}

/** None where the tenant is suspended. */
export const insertCode = (code: NewCode) => sql.type(newCodeRow)`
  INSERT INTO otp_codes (otp_id, tenant_id, user_id, destination_text, channel_code, purpose_code, code_hash_text,
    attempt_max, expiry_utc)
  SELECT ${code.otpId}::uuid, t.tenant_id, ${code.userId}::uuid, ${code.destination}, ${code.channelCode},
    ${code.purposeCode}, ${code.hash}, ${code.attemptMax}::int, now() + ${code.ttlMs}::float8 * interval '1 millisecond'
  FROM tenants t WHERE t.tenant_id = ${code.tenantId}::uuid AND t.tenant_state_code = 'active'
  RETURNING created_utc, expiry_utc`;

/**
 * Counts a guess, before it is compared: however many come at once, no more than `attempt_max` are. A newer code of the
 * same destination and purpose has ended this one; reading that, not writing it, is exact also where both are being made.
 */
export const countAttempt = (tenantId: string, otpId: string, purposes: readonly PurposeCode[]) =>
  sql.type(attemptRow)`
  UPDATE otp_codes o SET attempt_count = o.attempt_count + 1
  WHERE o.tenant_id = ${tenantId}::uuid AND o.otp_id = ${otpId}::uuid
    AND o.purpose_code = ANY (${sql.array(purposes, "text")})
    AND o.attempt_count < o.attempt_max AND o.consumed_utc IS NULL AND o.expiry_utc > now()
    AND NOT EXISTS (
      SELECT FROM otp_codes n
      WHERE n.tenant_id = o.tenant_id AND n.destination_text = o.destination_text AND n.purpose_code = o.purpose_code
        AND (n.created_utc, n.otp_id) > (o.created_utc, o.otp_id)
    )
  RETURNING o.otp_id, o.user_id, o.destination_text, o.channel_code, o.purpose_code, o.code_hash_text`;

/** Spends a code that was right, where nothing has ended it since. */
export const consumeCode = (tenantId: string, otpId: string) => sql.type(otpIdRow)`
  UPDATE otp_codes o SET consumed_utc = now()
  WHERE o.tenant_id = ${tenantId}::uuid AND o.otp_id = ${otpId}::uuid
    AND o.consumed_utc IS NULL AND o.expiry_utc > now()
    AND NOT EXISTS (
      SELECT FROM otp_codes n
      WHERE n.tenant_id = o.tenant_id AND n.destination_text = o.destination_text AND n.purpose_code = o.purpose_code
        AND (n.created_utc, n.otp_id) > (o.created_utc, o.otp_id)
    )
  RETURNING o.otp_id`;

/** Ends a user's live codes, of all purposes or of these. */
export const endCodes = (tenantId: string, userId: string, purposes: readonly PurposeCode[] = otpPurpose.options) =>
  sql.type(otpIdRow)`
  UPDATE otp_codes SET consumed_utc = now()
  WHERE tenant_id = ${tenantId}::uuid AND user_id = ${userId}::uuid
    AND purpose_code = ANY(${sql.array(purposes, "text")}) AND consumed_utc IS NULL AND expiry_utc > now()
  RETURNING otp_id`;

/** Ends a user's live one-time codes to these destinations. */
export const endCodesTo = (tenantId: string, userId: string, destinations: readonly string[]) =>
  sql.type(otpIdRow)`
  UPDATE otp_codes SET consumed_utc = now()
  WHERE tenant_id = ${tenantId}::uuid AND user_id = ${userId}::uuid
    AND destination_text = ANY(${sql.array(destinations, "text")}) AND consumed_utc IS NULL AND expiry_utc > now()
  RETURNING otp_id`;

/**
 * Deletes the codes to these destinations that were nobody's, or an inactive user's. They open nothing, and name no user by
 * whom an erasure could find them.
 */
export const deleteNobodysCodes = (tenantId: string, destinations: readonly string[]) => sql.type(otpIdRow)`
  DELETE FROM otp_codes
  WHERE tenant_id = ${tenantId}::uuid AND user_id IS NULL
    AND destination_text = ANY(${sql.array(destinations, "text")})
  RETURNING otp_id`;

// 64 bits over a million codes: the first ones are likelier by less than one in 10^13.
const codeOf = (mac: Buffer) => (mac.readBigUInt64BE() % CODES).toString().padStart(6, "0");

const hashedText = (otpId: string, code: string) => `${otpId}:${code}`;

/** The 6 digits that belong to a code's id, or undefined where their pepper is no longer configured. */
export const deriveCode = (macs: Macs, otpId: string, codeHashText: string): string | undefined => {
  const mac = macs.underPepperOf(codeHashText, "code", otpId);
  return mac && codeOf(mac);
};

/** What is stored of a new code: under which pepper it was derived, and a keyed hash. */
export const hashNewCode = (macs: Macs, otpId: string): string =>
  macs.tag("code-hash", hashedText(otpId, codeOf(macs.newest("code", otpId))));

/** Constant in time. */
export const isRightCode = (macs: Macs, row: AttemptRow, code: string): boolean =>
  macs.matches("code-hash", hashedText(row.otp_id, code), row.code_hash_text);
