import { sql } from "slonik";
import { z } from "zod";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import { detached } from "../rpc/call.ts";
import type { Database } from "./pool.ts";
import { transact } from "./transact.ts";

const BATCH = 1_000;

const deleteEndedSessions = (retentionMs: number) => sql.type(z.object({ svc_session_id: z.string() }))`
  DELETE FROM service_sessions x
  WHERE x.svc_session_id IN (
    SELECT y.svc_session_id FROM service_sessions y
    WHERE y.expiry_utc < now() - ${retentionMs}::float8 * interval '1 millisecond'
    ORDER BY y.expiry_utc
    LIMIT ${BATCH}
    FOR UPDATE SKIP LOCKED
  )
  RETURNING x.svc_session_id`;

/** Deletes what has ended, in small transactions; answers with how many rows went. */
export const purge = async (db: Database, { sessionRetentionMs }: Config["purge"]): Promise<number> => {
  let purged = 0;
  for (;;) {
    const rows = await transact(db, detached(), (tx) => tx.any(deleteEndedSessions(sessionRetentionMs)));
    purged += rows.length;
    if (rows.length < BATCH) return purged;
  }
};

/** Purges now and then, on every replica: rows that one has locked another passes over. Answers with what stops it. */
export const schedulePurge = (db: Database, config: Config["purge"], log: Log): (() => void) => {
  const run = () =>
    purge(db, config).then(
      (rows) => log.debug({ rows }, "purged"),
      (error: unknown) => log.warn({ err: error }, "purge failed; the next one tries again"),
    );
  const timer = setInterval(() => void run(), config.intervalMs);
  timer.unref();
  return () => clearInterval(timer);
};
