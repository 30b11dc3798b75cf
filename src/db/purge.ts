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

/** Writes the end into the sessions that a mark on their service has ended. */
const revokeMarkedByService = () => sql.type(z.object({ svc_session_id: z.string() }))`
  UPDATE service_sessions x SET revoked_utc = now()
  WHERE x.svc_session_id IN (
    SELECT y.svc_session_id FROM services s
    JOIN service_sessions y ON y.svc_id = s.svc_id AND y.created_utc <= s.sessions_ended_utc
    WHERE s.sessions_ended_utc IS NOT NULL AND y.revoked_utc IS NULL AND y.expiry_utc > now()
    LIMIT ${BATCH}
    FOR UPDATE OF y SKIP LOCKED
  )
  RETURNING x.svc_session_id`;

/** Likewise for those that a mark on their secret has ended. */
const revokeMarkedBySecret = () => sql.type(z.object({ svc_session_id: z.string() }))`
  UPDATE service_sessions x SET revoked_utc = now()
  WHERE x.svc_session_id IN (
    SELECT y.svc_session_id FROM service_secrets s
    JOIN service_sessions y ON y.secret_id = s.secret_id
    WHERE s.sessions_ended_utc IS NOT NULL AND y.revoked_utc IS NULL AND y.expiry_utc > now()
    LIMIT ${BATCH}
    FOR UPDATE OF y SKIP LOCKED
  )
  RETURNING x.svc_session_id`;

const inBatches = async (db: Database, statement: () => ReturnType<typeof revokeMarkedByService>): Promise<number> => {
  let total = 0;
  for (;;) {
    const rows = await transact(db, detached(), (tx) => tx.any(statement()));
    total += rows.length;
    if (rows.length < BATCH) return total;
  }
};

/** Deletes what has ended, in small transactions; answers with how many rows went. */
export const purge = async (db: Database, { sessionRetentionMs }: Config["purge"]): Promise<number> => {
  await inBatches(db, revokeMarkedByService);
  await inBatches(db, revokeMarkedBySecret);
  return inBatches(db, () => deleteEndedSessions(sessionRetentionMs));
};

/** Purges now and then, on every replica: rows that one has locked another passes over. Answers with what stops it. */
export const schedulePurge = (db: Database, config: Config["purge"], log: Log): (() => void) => {
  let stopped = false;
  let timer: NodeJS.Timeout | undefined;
  const run = () =>
    purge(db, config).then(
      (rows) => log.debug({ rows }, "purged"),
      (error: unknown) => log.warn({ err: error }, "purge failed; the next one tries again"),
    );
  const schedule = () => {
    if (!stopped) timer = setTimeout(() => void run().then(schedule), config.intervalMs).unref();
  };
  schedule();
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
};
