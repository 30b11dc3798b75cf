import type { ServerWritableStream } from "@grpc/grpc-js";

type WatchCall = ServerWritableStream<{ readonly service: string }, { status: string }>;
export type Watch = (call: WatchCall) => void;

/** The Watch streams of health under way. */
interface HealthWatches {
  /** grpc-health-check's own `watch`, held to what a watcher may expect. */
  once(watch: Watch): Watch;
  /** Ends those under way and all later ones, for which a drain would wait for ever. */
  endAll(): void;
}

/**
 * grpc-health-check's own Watch repeats equal statuses, never ends, and keeps each name that anybody ever watched: what is
 * no name of ours, and will be none, is answered here.
 */
export const createHealthWatches = (known: ReadonlySet<string>): HealthWatches => {
  const underWay = new Set<WatchCall>();
  let ended = false;

  return {
    once: (watch) => (call) => {
      let last: string | undefined;
      const write = call.write.bind(call) as (message: { status: string }) => boolean;
      call.write = (message: { status: string }) => {
        if (message.status === last) return true;
        last = message.status;
        return write(message);
      };
      call.on("cancelled", () => underWay.delete(call));
      if (known.has(call.request.service)) watch(call);
      else call.write({ status: "SERVICE_UNKNOWN" });
      if (ended) call.end();
      else underWay.add(call);
    },
    endAll() {
      ended = true;
      for (const call of underWay) call.end();
      underWay.clear();
    },
  };
};
