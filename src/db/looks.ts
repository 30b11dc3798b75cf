import type { Waiting } from "../rpc/call.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import type { Database } from "./pool.ts";
import { type Tx, transact } from "./transact.ts";

// Each look but the first follows a write of somebody else's, so a second one nearly always finds out.
const LOOKS_MAX = 3;

/** What a look answers with where somebody else has meanwhile written what it depends on: look again. */
export const changedMeanwhile = Symbol("changed meanwhile");

/**
 * Looks in a transaction, and in another one where somebody else wrote meanwhile.
 * @throws what it was refused with, CONFLICT where somebody always did
 */
export const transactAgain = async <Found>(
  db: Database,
  waiting: Waiting,
  look: (tx: Tx) => Promise<Found | typeof changedMeanwhile>,
): Promise<Exclude<Found, Refusal>> => {
  for (let looks = 0; looks < LOOKS_MAX; looks++) {
    const found = await transact(db, waiting, look);
    if (found !== changedMeanwhile) return found;
  }
  throw refusal("CONFLICT");
};
