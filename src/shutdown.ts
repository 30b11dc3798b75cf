import { setTimeout as sleep } from "node:timers/promises";
import type { Server } from "@grpc/grpc-js";
import type { Sequencer } from "./audit/sequencer.ts";
import type { Database } from "./db/pool.ts";
import type { Runner } from "./delivery/runner.ts";
import type { Health } from "./rpc/health.ts";
import type { HttpServer } from "./rpc/http.ts";
import type { Pipeline } from "./rpc/pipeline.ts";

const drainGrpc = (server: Server): Promise<void> => new Promise((resolve) => server.tryShutdown(() => resolve()));

/** How long what is cut off may take to be gone: grpc-js waits for whoever has not begun to speak TLS, and cuts nobody off. */
const FORCED_MS = 500;

/** What takes calls, and does work of its own. */
export interface Serving {
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

/** NOT_SERVING, wait for endpoints to notice, take no new call, drain, force what stays, close the pool. */
export const shutDown = async (serving: Serving): Promise<void> => {
  const { delayMs, graceMs, health, pipeline, grpc, http, delivery, sequencer, databases } = serving;
  health.leave();
  await sleep(delayMs);
  health.endWatches();
  pipeline.endStreams();
  const drained = Promise.all([drainGrpc(grpc), http?.drain(), delivery?.stop(graceMs), sequencer?.stop()]);
  const over = new AbortController();
  const forced = async () => {
    await sleep(graceMs, undefined, { signal: over.signal });
    grpc.forceShutdown();
    http?.force();
    await sleep(FORCED_MS, undefined, { signal: over.signal });
  };
  await Promise.race([drained, forced().catch(() => drained)]);
  over.abort();
  await Promise.all(databases.map((database) => database.end()));
};
