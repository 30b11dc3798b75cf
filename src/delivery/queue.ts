import type { Tx } from "../db/transact.ts";

/** Puts a one-time code on its way, in the transaction that makes it. The job names the code's id alone. */
export const enqueueCode = (_tx: Tx, _otpId: string): Promise<void> => Promise.reject(new Error("not built"));
