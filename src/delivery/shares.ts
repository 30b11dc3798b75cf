import type { WorkerEvents } from "graphile-worker";
import { PROVIDERS } from "./queue.ts";

/**
 * Keeps a worker free of each provider's messages, so that one which hangs delays its own alone.
 * @param concurrency how many workers there are; a single one is shared by all.
 * @returns what tells the worker that is about to look for a job what it is not to take: flags of jobs.
 */
export const shareWorkers = (events: WorkerEvents, concurrency: number): (() => string[]) => {
  const max = Math.max(1, concurrency - 1);
  // Of each provider, how many workers send its messages or may find one: those who look at the same time could all find
  // the same provider's. One worker is kept from them, for what others send.
  const taken = new Map<string, number>(PROVIDERS.map((provider) => [provider, 0]));
  const add = (flags: readonly string[], by: number) => {
    for (const flag of flags) taken.set(flag, (taken.get(flag) ?? 0) + by);
  };
  const asked: (readonly string[])[] = [];
  const looking = new Map<object, readonly string[]>();
  const looked = (worker: object) => {
    // An error may come before the look has begun.
    add(looking.get(worker) ?? asked.shift() ?? [], -1);
    looking.delete(worker);
  };
  // A worker begins to look once it has asked, in the order in which they ask.
  events.on("worker:getJob:start", ({ worker }) => looking.set(worker, asked.shift() ?? []));
  events.on("worker:getJob:empty", ({ worker }) => looked(worker));
  events.on("worker:getJob:error", ({ worker }) => looked(worker));
  events.on("job:start", ({ worker, job }) => {
    looked(worker);
    add(Object.keys(job.flags ?? {}), 1);
  });
  events.on("job:complete", ({ job }) => add(Object.keys(job.flags ?? {}), -1));
  return () => {
    const free = [...taken].flatMap(([flag, count]) => (count < max ? [flag] : []));
    asked.push(free);
    add(free, 1);
    return [...taken.keys()].filter((flag) => !free.includes(flag));
  };
};
