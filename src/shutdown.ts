import { setTimeout as sleep } from "node:timers/promises";
import type { Server } from "@grpc/grpc-js";
import type { Sequencer } from "./audit/sequencer.ts";
import type { Database } from "./db/pool.ts";
import type { Runner } from "./delivery/runner.ts";
import type { Health } from "./rpc/health.ts";
import type { HttpServer } from "./rpc/http.ts";
import type { Pipeline } from "./rpc/pipeline.ts";
import { endedWithin } from "./timers.ts";

const drainGrpc = (server: Server): Promise<void> => new Promise((resolve) => server.tryShutdown(() => resolve()));

/** How long what is cut off may take to be gone: grpc-js waits for whoever has not begun to speak TLS, and cuts nobody off. */
const FORCED_MS = 500;

/** What takes calls, and does work of its own. */
interface Serving {
  readonly delayMs: number;
  readonly graceMs: number;
  readonly health: Health;
  readonly pipeline: Pipeline;
  readonly grpc: Server;
  readonly http: HttpServer | undefined;
  readonly delivery: Runner | undefined;
  readonly sequencer: Sequencer | undefined;
  readonly databases: readonly Database[];
}

/** How often calls under way are looked for, and how long their last answers have to be read, in milliseconds. */
const LOOK_MS = 100;
const UNREAD_MS = 3_000;

/** Until nothing was under way for so long that whoever has not read his answer does not read, or the grace is over. */
const answersRead = async (pipeline: Pipeline, graceEnds: number, signal: AbortSignal): Promise<void> => {
  const now = () => performance.now();
  for (let lastCall = now(); now() < Math.min(graceEnds, lastCall + UNREAD_MS);) {
    await sleep(LOOK_MS, undefined, { signal });
    if (pipeline.underWay() > 0) lastCall = now();
  }
};

/** NOT_SERVING, wait for endpoints to notice, take no new call, drain, force what stays, close the pool. */
export const shutDown = async (serving: Serving): Promise<void> => {
  const { delayMs, graceMs, health, pipeline, grpc, http, delivery, sequencer, databases } = serving;
  health.leave();
  await sleep(delayMs);
  health.endWatches();
  pipeline.endStreams();
  const graceEnds = performance.now() + graceMs;
  const over = new AbortController();
  const { signal } = over;
  const drained = Promise.all([drainGrpc(grpc), http?.drain()]);
  const worked = Promise.all([delivery?.stop(graceMs), sequencer?.stop()]);
  const cutOff = async () => {
    await answersRead(pipeline, graceEnds, signal);
    // By themselves both servers reset what is under way, which says that its caller cancelled it.
    pipeline.endCalls();
    await sleep(LOOK_MS, undefined, { signal });
    grpc.forceShutdown();
    http?.force();
    await sleep(FORCED_MS, undefined, { signal });
  };
  await Promise.race([drained, cutOff()]);
  over.abort();
  await endedWithin(Math.max(0, graceEnds - performance.now()) + FORCED_MS, worked);
  await Promise.all(databases.map((database) => database.end()));
};
