import type { WorkerEvents } from "graphile-worker";
import { PROVIDERS } from "./queue.ts";

/** Keeps a worker free of each provider's messages, so that one which hangs delays its own alone. */
export interface Shares {
  /** What the worker that is about to look for a job is not to take: flags of jobs. */
  full(): string[];
}

/** @param concurrency how many workers there are; a single one is shared by all. */
export const shareWorkers = (events: WorkerEvents, concurrency: number): Shares => {
  const max = Math.max(1, concurrency - 1);
  const running = new Map<string, number>(PROVIDERS.map((provider) => [provider, 0]));
  let looking = 0;
  const add = (flags: object | null, by: number) => {
    for (const flag of Object.keys(flags ?? {})) running.set(flag, (running.get(flag) ?? 0) + by);
  };
  const looked = () => {
    looking--;
  };
  events.on("worker:getJob:empty", looked);
  events.on("worker:getJob:error", looked);
  events.on("job:start", ({ job }) => {
    looked();
    add(job.flags, 1);
  });
  events.on("job:complete", ({ job }) => {
    add(job.flags, -1);
  });
  return {
    full() {
      // Those who look at the same time may all find the same provider's.
      looking++;
      return [...running].flatMap(([flag, count]) => (count + looking > max ? [flag] : []));
    },
  };
};
