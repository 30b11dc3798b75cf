import { workerData } from "node:worker_threads";
import { hashSync } from "@node-rs/argon2";
import { normalPassword } from "./normal-passwords.ts";
import { type HashParameters, dummyHash, isOutdated, isSupportedHash, verifyHash } from "./password-hashes.ts";
import type { Verdict } from "./passwords.ts";

/** What a thread is asked for. */
export type PasswordJob =
  | { readonly kind: "hash"; readonly password: string }
  | { readonly kind: "verify"; readonly password: string; readonly hash: string | null };

const ours = workerData as HashParameters;
const dummy = dummyHash(ours);

const hash = (password: string) =>
  hashSync(normalPassword(password), {
    memoryCost: ours.memoryKib,
    timeCost: ours.passes,
    parallelism: ours.parallelism,
  });

const verify = (password: string, known: string | null): Verdict => {
  // The same work where there is nothing to compare with: the time must not tell who has a password.
  if (known === null || !isSupportedHash(known)) {
    verifyHash(password, dummy);
    return { matches: false, outdated: false };
  }
  return { matches: verifyHash(password, known), outdated: isOutdated(known, ours) };
};

/** Runs in a thread of its own; Piscina calls it. */
export default (job: PasswordJob): string | Verdict =>
  job.kind === "hash" ? hash(job.password) : verify(job.password, job.hash);
