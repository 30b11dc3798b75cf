import type { Call } from "../rpc/call.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";
import type { Database } from "./pool.ts";
import { type Tx, transact } from "./transact.ts";

// Each look but the first follows a write of somebody else's, so a second one nearly always finds out.
const LOOKS_MAX = 3;

/** What a look answers with where somebody else has meanwhile written what it depends on: look again. */
export const changedMeanwhile = Symbol("changed meanwhile");

/** Looks until nobody else wrote meanwhile; answers with CONFLICT where somebody always did. */
export const lookAgain = async <Found extends object>(
  look: () => Promise<Found | typeof changedMeanwhile>,
): Promise<Found | Refusal> => {
  for (let looks = 0; looks < LOOKS_MAX; looks++) {
    const found = await look();
    if (found !== changedMeanwhile) return found;
  }
  return refusal("CONFLICT");
};

/**
 * Looks in a transaction, and in another one where somebody else wrote meanwhile.
 * @throws what it was refused with, CONFLICT where somebody always did
 */
export const transactAgain = async <Found extends object>(
  db: Database,
  call: Call,
  look: (tx: Tx) => Promise<Found | typeof changedMeanwhile>,
): Promise<Exclude<Found, Refusal>> => {
  const found = await lookAgain(() => transact(db, call, look));
  if (found instanceof Refusal) throw found;
  return found;
};
