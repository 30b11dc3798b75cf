import type { Waiting } from "./rpc/call.ts";
import { refusal } from "./rpc/refusal.ts";

interface GateOptions {
  /** How many may be at work at once. */
  readonly size: number;
  /** How many may wait outside before others are refused. */
  readonly queueMax: number;
  /** How long one may wait, in milliseconds. */
  readonly waitMs: number;
}

/**
 * A bounded queue before what there are few of: connections, threads that hash, writers of one tree. The pools' own queues
 * have no limit, or let nobody leave.
 */
export interface Gate {
  /**
   * Runs `work` when there is room, in order of arrival.
   * @throws Refusal OVERLOADED when the queue is full or the wait too long, or why `waiting` is over.
   */
  enter<T>(work: () => Promise<T>, waiting: Waiting, onEnter?: (waitedSeconds: number) => void): Promise<T>;
  load(): { inside: number; waiting: number };
}

export const createGate = ({ size, queueMax, waitMs }: GateOptions): Gate => {
  // A Set keeps the order of arrival and lets one who gives up leave from the middle. Nobody waits while there is room.
  const queue = new Set<(value: undefined) => void>();
  let inside = 0;

  const handOn = () => {
    const [next] = queue;
    if (next) {
      queue.delete(next);
      next(undefined);
    } else inside--;
  };

  const room = async (waiting: Waiting) => {
    if (inside < size) {
      inside++;
      return;
    }
    if (queue.size >= queueMax) throw refusal("OVERLOADED");
    const { promise, resolve, reject } = Promise.withResolvers<undefined>();
    queue.add(resolve);
    const leave = (reason: unknown) => {
      if (queue.delete(resolve)) reject(reason);
    };
    const timer = setTimeout(() => leave(refusal("OVERLOADED")), waitMs);
    const stay = waiting.whenOver(leave);
    try {
      await promise;
    } finally {
      clearTimeout(timer);
      stay();
    }
  };

  return {
    async enter(work, waiting, onEnter) {
      const arrived = performance.now();
      await room(waiting);
      try {
        onEnter?.((performance.now() - arrived) / 1_000);
        return await work();
      } finally {
        handOn();
      }
    },
    load: () => ({ inside, waiting: queue.size }),
  };
};
