import { Counter, type Registry } from "prom-client";
import { sql } from "slonik";
import { z } from "zod";
import type { Channel } from "../auth/otp-codes.ts";
import type { Database } from "../db/pool.ts";
import { read } from "../db/transact.ts";
import type { Log } from "../log.ts";
import { waitingFor } from "../rpc/call.ts";
import { addGauge } from "../rpc/metrics.ts";

const loadRow = z.object({ waiting: z.bigint(), dead: z.bigint() });

const READ_EVERY_MS = 3_000;
const WAIT_MS = 1_000;

/** Counts what became of a message; `dropped` where nobody was to have it. */
export type CountOutcome = (channel: Channel | "unknown", outcome: "sent" | "retried" | "dead" | "dropped") => void;

const selectLoad = () => sql.type(loadRow)`
  SELECT count(*) FILTER (WHERE j.attempts < j.max_attempts OR j.locked_at IS NOT NULL) AS waiting,
    count(*) FILTER (WHERE j.attempts >= j.max_attempts AND j.locked_at IS NULL) AS dead
  FROM graphile_worker.jobs j`;

/** Reads behind a scrape, for the next one: a scrape waits for no database, and many ask it no more often. */
const createLoad = (db: Database, log: Log) => {
  let load = { waiting: 0n, dead: 0n };
  let readAt = -Infinity;
  return () => {
    if (performance.now() - readAt > READ_EVERY_MS) {
      readAt = performance.now();
      read(db, waitingFor(WAIT_MS), (connection) => connection.one(selectLoad())).then(
        (row) => (load = row),
        (error: unknown) => log.debug({ err: error }, "the queue's length was not read"),
      );
    }
    return load;
  };
};

export const createDeliveryMetrics = (registry: Registry, db: Database, log: Log): CountOutcome => {
  const messages = new Counter({
    name: "delivery_messages_total",
    help: "Tries to send a message, by channel and outcome.",
    labelNames: ["channel", "outcome"],
    registers: [registry],
  });
  const load = createLoad(db, log);
  const waiting = "Messages that wait to be sent or sent again, or are being sent.";
  addGauge(registry, "delivery_queue_length", waiting, () => Number(load().waiting));
  addGauge(registry, "delivery_dead_letters", "Messages that are not tried any more.", () => Number(load().dead));
  return (channel, outcome) => messages.inc({ channel, outcome });
};
