import type { Server } from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import { type CommonQueryMethods, sql } from "slonik";
import { z } from "zod";
import { UNDEFINED_TABLE, sqlStateOf } from "../db/sql-state.ts";
import { QUEUE_STEP, pendingMigrations } from "../db/migrations.ts";
import type { Database } from "../db/pool.ts";
import { read } from "../db/transact.ts";
import type { Log } from "../log.ts";
import { afterSilence } from "../timers.ts";
import { waitingUntil } from "./call.ts";
import { type Watch, createHealthWatches } from "./health-watches.ts";

const filenameRow = z.object({ filename: z.string() });
const stepRow = z.object({ step: z.number().nullable(), found: z.boolean(), copies: z.boolean() });

const INTERVAL_MS = 1_000;
const PING_MS = 800;
const FAILURES_TO_FALL = 2;
const LIVENESS = "liveness";

/** What readiness depends on: the database answers, and is migrated. */
type Readiness = "ready" | "database unavailable" | "migrations pending" | "shutting down";

export interface Health {
  readonly readiness: () => Readiness;
  /** Adds `grpc.health.v1.Health`, whose names `""`, `readiness` and the services' follow the database; `liveness` never does. */
  addTo(server: Server): void;
  /** Asks the database now, and then every second. Resolves after the first answer. */
  start(): Promise<void>;
  /** NOT_SERVING from now on; pollers and balancers turn away. */
  leave(): void;
  /** Ends the Watch streams, for which a drain would wait for ever. */
  endWatches(): void;
}

interface HealthOptions {
  /** A connection of health's own: a full pool is not a dead database. */
  readonly probe: Database;
  readonly services: readonly string[];
  readonly log: Log;
  /** Told of each ping that failed. */
  readonly onFailure: () => void;
  readonly onChange: (readiness: Readiness) => void;
}

const selectAppliedMigrations = () => sql.type(filenameRow)`
  SELECT m.filename FROM graphile_migrate.migrations m ORDER BY m.filename`;

/** Migrations may be applied and all tables still not be found: our role, or the database, has another search_path. */
const selectQueueStep = () => sql.type(stepRow)`
  SELECT max(m.id) AS step, to_regclass('tenants') IS NOT NULL AS found, pg_is_in_recovery() AS copies
  FROM graphile_worker.migrations m`;

/** Undefined where the table of these migrations is not there yet. */
const ifThere = async <T>(query: Promise<T>): Promise<T | undefined> => {
  try {
    return await query;
  } catch (error) {
    if (sqlStateOf(error) !== UNDEFINED_TABLE) throw error;
    return undefined;
  }
};

const selectPending = async (db: CommonQueryMethods): Promise<readonly string[]> => {
  const applied = (await ifThere(db.any(selectAppliedMigrations()))) ?? [];
  const queue = await ifThere(db.one(selectQueueStep()));
  // It answers, but takes no writes, and its decisions would be older than the last answered change.
  if (queue?.copies) throw new Error("the database is a replica of another");
  const pending = pendingMigrations(applied.map(({ filename }) => filename));
  return [
    ...pending,
    ...(pending.length === 0 && queue?.found === false ? ["none: search_path leads to no tables of ours"] : []),
    ...((queue?.step ?? 0) < QUEUE_STEP ? ["the delivery queue's schema"] : []),
  ];
};

export const createHealth = ({ probe, services, log, onFailure, onChange }: HealthOptions): Health => {
  const names = ["", "readiness", ...services];
  const statuses = new HealthImplementation({ [LIVENESS]: "SERVING" });
  const watches = createHealthWatches(new Set([...names, LIVENESS]));
  let readiness: Readiness = "database unavailable";
  let failures = 0;
  let timer: NodeJS.Timeout | undefined;
  let left = false;

  const set = (next: Readiness, pending: readonly string[] = []) => {
    if (left || next === readiness) return;
    readiness = next;
    for (const name of names) statuses.setStatus(name, next === "ready" ? "SERVING" : "NOT_SERVING");
    const isExpected = next === "ready" || next === "shutting down";
    log[isExpected ? "info" : "warn"]({ readiness, pending_migrations: pending }, "readiness changed");
    onChange(readiness);
  };

  const ask = async () => {
    const limit = new AbortController();
    const spare = afterSilence(PING_MS, () => limit.abort(new Error(`no answer within ${PING_MS} ms`)));
    try {
      const waiting = waitingUntil(limit.signal, () => PING_MS);
      const pending = await read(probe, waiting, selectPending);
      failures = 0;
      set(pending.length === 0 ? "ready" : "migrations pending", pending);
    } catch (error) {
      onFailure();
      if (++failures === FAILURES_TO_FALL) {
        log.warn({ err: error }, "the database does not answer");
        set("database unavailable");
      }
    } finally {
      spare();
    }
  };

  const schedule = (afterMs: number) => {
    if (left) return;
    timer = setTimeout(() => {
      const asked = performance.now();
      void ask().then(() => schedule(Math.max(0, INTERVAL_MS - (performance.now() - asked))));
    }, afterMs);
    timer.unref();
  };

  for (const name of names) statuses.setStatus(name, "NOT_SERVING");

  return {
    readiness: () => readiness,
    addTo(server) {
      const shim = {
        addService(service: Parameters<Server["addService"]>[0], handlers: Parameters<Server["addService"]>[1]) {
          server.addService(service, { ...handlers, watch: watches.once(handlers["watch"] as Watch) as never });
        },
      };
      statuses.addToServer(shim);
    },
    async start() {
      await ask();
      schedule(INTERVAL_MS);
    },
    leave() {
      set("shutting down");
      left = true;
      clearTimeout(timer);
    },
    endWatches: watches.endAll,
  };
};
