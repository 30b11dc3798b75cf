import type { WorkerEvents } from "graphile-worker";
import { sql } from "slonik";
import { z } from "zod";
import { column } from "../db/columns.ts";
import type { Database } from "../db/pool.ts";
import { transact } from "../db/transact.ts";
import type { Waiting } from "../rpc/call.ts";
import { LOST_MS } from "./workers.ts";

const idRow = z.object({ id: z.bigint() });
const lockedRow = z.object({ id: z.bigint(), attempts: z.number(), locked_ms: z.number() });

const selectLocked = (workerId: string) => sql.type(lockedRow)`
  SELECT j.id, j.attempts, (extract(epoch FROM now() - j.locked_at) * 1000)::float8 AS locked_ms
  FROM graphile_worker.jobs j WHERE j.locked_by = ${workerId}`;

/** The queue's own functions unlock all that a worker holds, or nothing. What nobody began was no try. */
const unlockUnheard = (workerId: string, ids: readonly bigint[]) => sql.type(idRow)`
  UPDATE graphile_worker._private_jobs j SET locked_at = NULL, locked_by = NULL, attempts = greatest(j.attempts - 1, 0)
  WHERE j.locked_by = ${workerId} AND j.id = ANY (${sql.array(ids, "int8")})
  RETURNING j.id`;

/** The jobs that the queue has given to this process's worker. */
export interface GivenJobs {
  /**
   * Frees those of which the worker was not told: the database locked them for it, and the answer was lost. It lives, so
   * others take them for under way, and nobody would send them. Answers how many.
   */
  freeUnheard(db: Database, waiting: Waiting, workerId: string): Promise<number>;
  /** Whether nothing of it is left to do, though it may be that nobody could write so. */
  isDone(id: bigint): boolean;
}

/** @param lookMs how long the worker waits to be told of a job that it asked for. */
export const watchGivenJobs = (events: WorkerEvents, lookMs: number): GivenJobs => {
  // By id, which try: after a failure the same job may be given again, and that answer be lost.
  const heard = new Map<bigint, number>();
  events.on("job:start", ({ job }) => heard.set(BigInt(job.id), job.attempts));
  const done = new Set<bigint>();
  events.on("job:success", ({ job }) => done.add(BigInt(job.id)));
  const forget = (id: bigint) => {
    heard.delete(id);
    done.delete(id);
  };
  // As long as a lost replica's job waits for another replica, or longer where an answer may take longer.
  const unheardMs = Math.max(LOST_MS, 2 * lookMs);
  return {
    async freeUnheard(db, waiting, workerId) {
      const before = [...heard];
      return await transact(db, waiting, async (tx) => {
        const locked = await tx.any(selectLocked(workerId));
        const ids = new Set(locked.map(({ id }) => id));
        // Kept until what became of it is written; a try that began since the look may not stand in it yet.
        for (const [id, attempts] of before) if (!ids.has(id) && heard.get(id) === attempts) forget(id);
        const unheard = locked.filter(
          ({ id, attempts, locked_ms }) => locked_ms > unheardMs && heard.get(id) !== attempts,
        );
        if (unheard.length === 0) return 0;
        const freed = await tx.any(unlockUnheard(workerId, column(unheard, "id")));
        return freed.length;
      });
    },
    isDone: (id) => done.has(id),
  };
};
