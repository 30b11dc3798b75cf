import { EventEmitter } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { type Runner as GraphileRunner, Logger, type Task, type WorkerEvents, run } from "graphile-worker";
import { z } from "zod";
import type { Config } from "../config.ts";
import { answerMs } from "../db/connections.ts";
import type { Database } from "../db/pool.ts";
import type { Log } from "../log.ts";
import { endedWithin } from "../timers.ts";
import { watchGivenJobs } from "./given-jobs.ts";
import { SEND_CODE } from "./queue.ts";
import { shareWorkers } from "./shares.ts";
import { endQueuePool, openQueuePool } from "./queue-pool.ts";
import { type Heartbeat, startHeartbeat } from "./workers.ts";

// New jobs are told of by NOTIFY; behind PgBouncer only polling finds them.
const POLL_MS = 2_000;
const READY_POLL_MS = 200;
// As often as health asks the database, which has to answer before each start; a longer pause would be a code's delay.
const RESTART_MS = 1_000;
/** One connection listens, one reads while all workers write. */
const SPARE_CONNECTIONS = 2;

const payloadRow = z.object({ otp_id: z.uuid() });

/** Sends one code; `attempt` counts from 1. */
export type SendCode = (otpId: string, attempt: number, signal: AbortSignal) => Promise<void>;

interface RunnerOptions {
  readonly databaseUrl: string;
  readonly settings: Config["database"];
  readonly concurrency: number;
  /** For the heartbeat. */
  readonly db: Database;
  readonly log: Log;
  /** Whether the database answers and is migrated. */
  readonly ready: () => boolean;
  readonly send: SendCode;
}

/** One life of graphile-worker, which ends where it cannot write what became of a job. */
interface Session {
  readonly ended: Promise<void>;
  close(graceMs: number): Promise<void>;
}

/**
 * Resolves once no look for a job can succeed any more. Before its first one graphile-worker asks for the ids of its tasks,
 * once, and where that fails each look fails with the same error for ever.
 */
const foundBlind = (events: WorkerEvents): Promise<undefined> => {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const errors = new WeakSet<Error>();
  events.on("worker:getJob:error", ({ error }) => {
    if (!(error instanceof Error)) return;
    if (errors.has(error)) resolve(undefined);
    errors.add(error);
  });
  return promise;
};

/**
 * Resolves once graphile-worker has ended. Where several of its writes have failed it miscounts them, and waits for ever:
 * when its workers have ended, each write is given the time that its answer may take.
 */
const endOf = async ({ promise: ended }: GraphileRunner, events: WorkerEvents, writeMs: number): Promise<void> => {
  const idle = Promise.withResolvers<undefined>();
  for (const outcome of ["complete", "error"] as const) {
    events.once(`pool:gracefulShutdown:${outcome}`, () => idle.resolve(undefined));
  }
  await Promise.race([ended, idle.promise]);
  await endedWithin(writeMs, ended);
};

const openSession = async (options: RunnerOptions): Promise<Session> => {
  const { databaseUrl, settings, concurrency, db, log, send } = options;
  const pool = openQueuePool({ databaseUrl, settings, log, size: concurrency + SPARE_CONNECTIONS });
  const cancel = new AbortController();
  const events: WorkerEvents = new EventEmitter();
  const heart = Promise.withResolvers<Heartbeat>();
  const freed = Promise.withResolvers<undefined>();
  const given = watchGivenJobs(events, answerMs(settings));
  const blind = foundBlind(events);
  events.once("pool:create", ({ workerPool }) => {
    heart.resolve(startHeartbeat({ db, log, workerId: workerPool.id, given }));
  });
  const task: Task = async (payload, { job }) => {
    try {
      await send(payloadRow.parse(payload).otp_id, job.attempts, cancel.signal);
    } catch (error) {
      // What is freed goes to another replica at once; a failure written before that would let it wait.
      if (cancel.signal.aborted) await freed.promise;
      throw error;
    }
    // Who cannot say now that it was sent would have it sent again.
    await (await heart.promise).answered(cancel.signal);
  };

  const runner = await run({
    pgPool: pool,
    events,
    taskList: { [SEND_CODE]: task },
    forbiddenFlags: shareWorkers(events, concurrency),
    parsedCronItems: [],
    concurrency,
    pollInterval: POLL_MS,
    noHandleSignals: true,
    noPreparedStatements: settings.pgBouncer,
    // Its messages hold no payload; what matters of them is logged by us.
    logger: new Logger((scope) => (_level, message) => log.debug({ scope }, message)),
    // Batches, even of no delay: without them the worker waits for neither write, and one that fails ends the process.
    preset: { worker: { completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
  }).catch(async (error: unknown) => {
    await endQueuePool(pool, log);
    throw error;
  });

  // Rejected where it is stopping already.
  void blind.then(() => runner.stop()).catch(() => undefined);

  let closed: Promise<void> | undefined;
  const close = async (graceMs: number) => {
    const heartbeat = await heart.promise;
    // Rejected where it has stopped by itself.
    const stopped = runner.stop().catch(() => runner.promise);
    const inTime = await endedWithin(graceMs, stopped);
    if (!inTime) log.warn("a message under way was given up, for another replica to send");
    cancel.abort();
    await heartbeat.end().catch((error: unknown) => log.debug({ err: error }, "the delivery's worker is left behind"));
    freed.resolve(undefined);
    await endQueuePool(pool, log);
  };
  const ended = endOf(runner, events, answerMs(settings));
  return { ended, close: (graceMs) => (closed ??= close(graceMs)) };
};

/** The queue's consumer of this replica. */
export interface Runner {
  /** Takes no new job, lets those under way end within `graceMs`, and frees the rest for others. */
  stop(graceMs: number): Promise<void>;
}

/** Consumes the queue as soon as the database is ready, and again after each outage; it delays and ends nothing else. */
export const startRunner = (options: RunnerOptions): Runner => {
  const { log, ready } = options;
  const stopping = new AbortController();
  const isStopping = () => stopping.signal.aborted;
  let session: Promise<Session> | undefined;

  const pause = (ms: number) => sleep(ms, undefined, { signal: stopping.signal, ref: false }).catch(() => undefined);
  const runOnce = async () => {
    session = openSession(options);
    const { ended, close } = await session;
    await ended;
    if (!isStopping()) await close(0);
  };
  const runOn = async () => {
    while (!isStopping()) {
      if (!ready()) {
        await pause(READY_POLL_MS);
        continue;
      }
      await runOnce().catch((error: unknown) => log.warn({ err: error }, "the delivery's consumer failed"));
      if (isStopping()) return;
      log.warn("the delivery's consumer ended and starts again");
      await pause(RESTART_MS);
    }
  };
  const running = runOn();

  return {
    async stop(graceMs) {
      stopping.abort();
      const open = await session?.catch(() => undefined);
      await open?.close(graceMs);
      await running;
    },
  };
};
