import { sql } from "slonik";
import { z } from "zod";
import type { Channel } from "../auth/otp-codes.ts";
import type { Tx } from "../db/transact.ts";

const idRow = z.object({ id: z.bigint() });

/** The queue's name for sending a one-time code. */
export const SEND_CODE = "send_code";

/** The flags of jobs: where one provider hangs, the other's messages go on. */
export const PROVIDERS = ["email", "phone"] as const;
type Provider = (typeof PROVIDERS)[number];

// The key is how a job whose message can never be sent is told not to be tried again.
const insertJob = (otpId: string, provider: Provider) => sql.type(idRow)`
  SELECT j.id FROM graphile_worker.add_job(
    identifier => ${SEND_CODE}::text,
    payload => json_build_object('otp_id', ${otpId}::text),
    job_key => ${otpId}::text,
    flags => ARRAY[${provider}::text]
  ) j`;

/** Puts a one-time code on its way, in the transaction that makes it. The job names the code's id alone. */
export const enqueueCode = async (tx: Tx, otpId: string, channel: Channel): Promise<void> => {
  await tx.one(insertJob(otpId, channel === "email" ? "email" : "phone"));
};
