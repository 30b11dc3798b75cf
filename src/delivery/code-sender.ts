import { sql } from "slonik";
import { z } from "zod";
import { type Channel, deriveCode, otpChannel, otpPurpose } from "../auth/otp-codes.ts";
import type { Database } from "../db/pool.ts";
import { read, transact } from "../db/transact.ts";
import type { Log } from "../log.ts";
import type { Macs } from "../macs.ts";
import { detached } from "../rpc/call.ts";
import { type Message, NotSent, type Senders, asNotSent } from "./message.ts";
import type { CountOutcome } from "./metrics.ts";
import type { SendCode } from "./runner.ts";
import type { Templates } from "./templates.ts";

const idRow = z.object({ id: z.bigint().nullable() });

const MINUTE_MS = 60_000;

const codeRow = z.object({
  otp_id: z.string(),
  destination_text: z.string(),
  channel_code: otpChannel,
  purpose_code: otpPurpose,
  code_hash_text: z.string(),
  remaining_ms: z.number(),
  tenant_label: z.string(),
  is_due: z.boolean(),
});
type CodeRow = z.output<typeof codeRow>;

/** Due is one of an active user that is neither spent, guessed at too often, expired nor ended by a newer one. */
const selectCode = (otpId: string) => sql.type(codeRow)`
  SELECT o.otp_id, o.destination_text, o.channel_code, o.purpose_code, o.code_hash_text,
    (extract(epoch FROM o.expiry_utc - now()) * 1000)::float8 AS remaining_ms, t.tenant_label,
    coalesce(u.user_state_code = 'active', false) AND o.consumed_utc IS NULL AND o.expiry_utc > now()
      AND o.attempt_count < o.attempt_max AND NOT EXISTS (
        SELECT FROM otp_codes n
        WHERE n.tenant_id = o.tenant_id AND n.destination_text = o.destination_text AND n.purpose_code = o.purpose_code
          AND (n.created_utc, n.otp_id) > (o.created_utc, o.otp_id)
      ) AS is_due
  FROM otp_codes o
  JOIN tenants t ON t.tenant_id = o.tenant_id
  LEFT JOIN users u ON u.tenant_id = o.tenant_id AND u.user_id = o.user_id
  WHERE o.otp_id = ${otpId}::uuid`;

/** A job that is being run is not tried again once its key is removed; it stays, as a dead letter. */
const endTries = (otpId: string) => sql.type(idRow)`
  SELECT j.id FROM graphile_worker.remove_job(${otpId}) j`;

interface CodeSenderOptions {
  readonly db: Database;
  readonly macs: Macs;
  readonly templates: Templates;
  readonly senders: Senders;
  /** How often a message is tried. */
  readonly attemptMax: number;
  readonly count: CountOutcome;
  readonly log: Log;
}

const messageOf = (row: CodeRow, { macs, templates }: CodeSenderOptions): Message => {
  const code = deriveCode(macs, row.otp_id, row.code_hash_text);
  if (code === undefined) throw new NotSent("its pepper is no longer configured", true);
  const minutes = Math.max(1, Math.round(row.remaining_ms / MINUTE_MS));
  const { sms, ...parts } = templates.render(row.purpose_code, { code, minutes, tenant: row.tenant_label });
  return {
    ...parts,
    short: sms,
    otpId: row.otp_id,
    channel: row.channel_code,
    purpose: row.purpose_code,
    to: row.destination_text,
  };
};

/**
 * Sends the code of an id, or nothing where nobody is to have it. What goes wrong is thrown without what was sent, so
 * that the queue tries again later; at the last try, or where no further one can succeed, it is told not to.
 */
export const createCodeSender = (options: CodeSenderOptions): SendCode => {
  const { db, senders, attemptMax, count, log } = options;

  const send = async (row: CodeRow, signal: AbortSignal) => {
    const sender = senders.get(row.channel_code);
    if (!sender) throw new NotSent("no provider is configured for its channel", false);
    await sender(messageOf(row, options), signal);
  };

  const onFailure = async (otpId: string, channel: Channel, attempt: number, failure: NotSent) => {
    const dead = failure.final || attempt >= attemptMax;
    if (dead) await transact(db, detached(), (tx) => tx.maybeOne(endTries(otpId)));
    count(channel, dead ? "dead" : "retried");
    log.warn({ otp_id: otpId, channel, attempt, dead, failure: failure.message }, "a message was not sent");
  };

  return async (otpId, attempt, signal) => {
    try {
      const row = await read(db, detached(), (connection) => connection.maybeOne(selectCode(otpId)));
      if (!row?.is_due) return count(row?.channel_code ?? "unknown", "dropped");
      try {
        await send(row, signal);
        count(row.channel_code, "sent");
      } catch (error) {
        const failure = asNotSent(error);
        // A message that was given up by a shutdown is another replica's.
        if (!signal.aborted) await onFailure(otpId, row.channel_code, attempt, failure);
        throw failure;
      }
    } catch (error) {
      throw asNotSent(error);
    }
  };
};
