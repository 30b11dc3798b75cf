import type { Config } from "../config.ts";
import { TIMER_MAX_MS } from "../config-values.ts";
import { createGate } from "../gate.ts";
import type { Waiting } from "../rpc/call.ts";
import { refusal } from "../rpc/refusal.ts";
import type { HashParameters } from "./password-hashes.ts";
import type { PasswordJob } from "./password-worker.ts";

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
  /** How many wait for a thread. */
  queueLength(): number;
  close(): Promise<void>;
}

// On Linux a thread has its own priority: hashing takes the processor time that nothing else wants.
const NICE = 10;
// A thread and its memory are given back when no password has come for a while.
const IDLE_MS = 30_000;

/** @param onBroken told when a thread could not start: who waits for this pool is then answered, and nobody waits again. */
const openPool = async (config: Config["passwords"], onBroken: () => void) => {
  // Imported when the first password comes: it is 8 MB of a process that may never see one.
  const { Piscina } = await import("piscina");
  const { memoryKib, passes, parallelism } = config;
  const pool = new Piscina<PasswordJob, unknown>({
    filename: new URL("./password-worker.ts", import.meta.url).href,
    minThreads: 0,
    maxThreads: config.threads,
    idleTimeout: IDLE_MS,
    niceIncrement: NICE,
    workerData: { memoryKib, passes, parallelism } satisfies HashParameters,
  });
  let fault: Error | undefined;
  pool.on("error", (error: Error) => {
    fault = error;
    onBroken();
    void pool.destroy();
  });
  return {
    async run(job: PasswordJob) {
      try {
        return await pool.run(job);
      } catch (error) {
        throw fault ? new Error("no thread for passwords", { cause: fault }) : error;
      }
    },
    destroy: () => pool.destroy(),
  };
};

/** @param onBroken told also where there comes to be no pool: whoever needs one next starts another. */
const startPool = (config: Config["passwords"], onBroken: () => void) => {
  const pool = openPool(config, onBroken);
  pool.catch(onBroken);
  return pool;
};

export const createPasswords = (config: Config["passwords"]): Passwords => {
  // Before Piscina, whose own queue forgets its bound, and whose threads die with the job, where jobs can be cancelled.
  const gate = createGate({ size: config.threads, queueMax: config.queueMax, waitMs: TIMER_MAX_MS });
  let pool: ReturnType<typeof startPool> | undefined;
  let closed = false;

  const run = async (waiting: Waiting, job: PasswordJob): Promise<unknown> => {
    waiting.throwIfOver();
    return await gate.enter(async () => {
      if (closed) throw refusal("OVERLOADED");
      pool ??= startPool(config, () => (pool = undefined));
      return (await pool).run(job);
    }, waiting);
  };

  return {
    hash: (waiting, password) => run(waiting, { kind: "hash", password }) as Promise<string>,
    verify: (waiting, password, hash) => run(waiting, { kind: "verify", password, hash }) as Promise<Verdict>,
    queueLength: () => gate.load().waiting,
    async close() {
      closed = true;
      await (await pool)?.destroy();
    },
  };
};
