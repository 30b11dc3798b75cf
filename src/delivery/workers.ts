import { setTimeout as sleep } from "node:timers/promises";
import { sql } from "slonik";
import { z } from "zod";
import { createCoalescer } from "../db/coalesce.ts";
import { column } from "../db/columns.ts";
import type { Database } from "../db/pool.ts";
import { type Tx, transact } from "../db/transact.ts";
import type { Log } from "../log.ts";
import { startPolling } from "../polling.ts";
import { type Waiting, detached, waitingFor } from "../rpc/call.ts";
import type { GivenJobs } from "./given-jobs.ts";

const freedRow = z.object({ freed: z.boolean() });
const idRow = z.object({ id: z.bigint() });

const BEAT_MS = 5_000;
/** Three beats: whoever is not seen for so long has ended without a word. */
export const LOST_MS = 15_000;
const WAIT_MS = 2_000;
const RETRY_MS = 250;

const workerRow = z.object({ worker_id: z.string() });
const heldRow = z.object({ id: z.bigint(), attempts: z.number() });
type HeldRow = z.output<typeof heldRow>;

const upsertWorker = (workerId: string) => sql.type(workerRow)`
  INSERT INTO delivery_workers AS w (worker_id, seen_utc) VALUES (${workerId}, now())
  ON CONFLICT (worker_id) DO UPDATE SET seen_utc = now()
  RETURNING w.worker_id`;

/** A worker may end between its first job and its first beat: its jobs say when it was seen. */
const insertUnseenWorkers = () => sql.type(workerRow)`
  INSERT INTO delivery_workers AS w (worker_id, seen_utc)
  SELECT j.locked_by, max(j.locked_at) FROM graphile_worker.jobs j
  WHERE j.locked_by IS NOT NULL AND NOT EXISTS (SELECT FROM delivery_workers s WHERE s.worker_id = j.locked_by)
  GROUP BY j.locked_by
  ON CONFLICT (worker_id) DO NOTHING
  RETURNING w.worker_id`;

/** Of several that look at once, the one that deletes the row frees what it held. */
const deleteLostWorkers = () => sql.type(workerRow)`
  DELETE FROM delivery_workers w WHERE w.seen_utc < now() - ${LOST_MS}::float8 * interval '1 millisecond'
  RETURNING w.worker_id`;

const deleteWorker = (workerId: string) => sql.type(workerRow)`
  DELETE FROM delivery_workers w WHERE w.worker_id = ${workerId} RETURNING w.worker_id`;

const selectHeld = (workerIds: readonly string[]) => sql.type(heldRow)`
  SELECT j.id, j.attempts FROM graphile_worker.jobs j
  WHERE j.locked_by = ANY (${sql.array(workerIds, "text")})`;

const unlockJobs = (workerIds: readonly string[]) => sql.type(freedRow)`
  SELECT true AS freed FROM graphile_worker.force_unlock_workers(${sql.array(workerIds, "text")})`;

/** What was cut off was no try: else the last one's loss would be the message's. */
const giveTryBack = ({ id, attempts }: HeldRow) => sql.type(idRow)`
  SELECT j.id FROM graphile_worker.reschedule_jobs(
    ARRAY[${id}::int8], attempts => ${Math.max(0, attempts - 1)}::int4
  ) j`;

/** Only what nobody holds. */
const complete = ({ id }: HeldRow) => sql.type(idRow)`
  SELECT j.id FROM graphile_worker.complete_jobs(ARRAY[${id}::int8]) j`;

const freeJobs = async (
  tx: Tx,
  workerIds: readonly string[],
  isDone: GivenJobs["isDone"] = () => false,
): Promise<number> => {
  const held = await tx.any(selectHeld(workerIds));
  await tx.one(unlockJobs(workerIds));
  for (const job of held) await tx.any(isDone(job.id) ? complete(job) : giveTryBack(job));
  return held.length;
};

/** Frees the jobs of workers that are not seen any more, for others to send; answers how many. */
export const freeLostJobs = (db: Database, waiting: Waiting): Promise<number> =>
  transact(db, waiting, async (tx) => {
    await tx.any(insertUnseenWorkers());
    const lost = await tx.any(deleteLostWorkers());
    return lost.length > 0 ? freeJobs(tx, column(lost, "worker_id")) : 0;
  });

/** What tells others that a worker lives. */
export interface Heartbeat {
  /** Resolves once the database has answered: what was sent can now be marked as sent. */
  answered(signal: AbortSignal): Promise<void>;
  /** The last beat; ends what the worker has done and could not say so, and frees what else it still holds. */
  end(): Promise<void>;
}

interface HeartbeatOptions {
  /** Not the calls' own: when all its connections are in use, the worker still lives. */
  readonly db: Database;
  readonly workerId: string;
  readonly given: GivenJobs;
  readonly log: Log;
}

/** Beats now and then until its end, and each time frees what nobody sends: what others left, or it was not told of. */
export const startHeartbeat = ({ db, workerId, given, log }: HeartbeatOptions): Heartbeat => {
  let blindUntil = 0;

  const beat = async () => {
    try {
      await transact(db, waitingFor(WAIT_MS), (tx) => tx.one(upsertWorker(workerId)));
    } catch (error) {
      // Who could not reach the database cannot tell who is dead: others could not either, and have yet to beat again.
      blindUntil = performance.now() + LOST_MS;
      throw error;
    }
  };
  // One for all who ask before it begins: each for himself, a hundred workers would write one row in turn, and health, whose
  // connections these are, would wait behind them until it took the database for dead.
  const beatForAll = createCoalescer(
    async (asked: readonly undefined[]) => {
      await beat();
      return asked;
    },
    { underWayMax: 1 },
  );
  const tick = async () => {
    await beat();
    const unheard = await given.freeUnheard(db, waitingFor(WAIT_MS), workerId);
    if (unheard > 0) log.warn({ jobs: unheard }, "freed what this replica was given, and was not told of");
    if (performance.now() < blindUntil) return;
    const jobs = await freeLostJobs(db, waitingFor(WAIT_MS));
    if (jobs > 0) log.warn({ jobs }, "freed what a lost replica was sending");
  };
  const missed = (error: unknown) => log.debug({ err: error }, "no heartbeat of the delivery");
  const polling = startPolling(() => tick().catch(missed), BEAT_MS);
  void polling.now();

  return {
    async answered(signal) {
      while (!signal.aborted) {
        const reached = await beatForAll(detached(), undefined).then(
          () => true,
          () => false,
        );
        if (reached) return;
        await sleep(RETRY_MS);
      }
    },
    async end() {
      polling.stop();
      await transact(db, waitingFor(WAIT_MS), async (tx) => {
        await tx.any(deleteWorker(workerId));
        await freeJobs(tx, [workerId], given.isDone);
      });
    },
  };
};
