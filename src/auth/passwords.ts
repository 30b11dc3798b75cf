import type { Config } from "../config.ts";
import type { Waiting } from "../rpc/call.ts";

/** What a password is compared with. */
export interface Verdict {
  readonly matches: boolean;
  /** The hash was made with other parameters than ours, or by another system: who logs in gets a new one. */
  readonly outdated: boolean;
}

/** Hashes and verifies passwords off the event loop, behind a bounded queue. */
export interface Passwords {
  /** An argon2id PHC string. @throws OVERLOADED */
  hash(waiting: Waiting, password: string): Promise<string>;
  /** Where there is no hash it takes as long as where there is one, and does not match. @throws OVERLOADED */
  verify(waiting: Waiting, password: string, hash: string | null): Promise<Verdict>;
  close(): Promise<void>;
}

export const createPasswords = (_config: Config["passwords"]): Passwords => ({
  hash: () => Promise.reject(new Error("not built")),
  verify: () => Promise.reject(new Error("not built")),
  close: () => Promise.resolve(),
});
