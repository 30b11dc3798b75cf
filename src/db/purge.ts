import { type QuerySqlToken, sql } from "slonik";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import { startPolling } from "../polling.ts";
import { detached } from "../rpc/call.ts";
import { noRow } from "./batches.ts";
import type { Database } from "./pool.ts";
import { transact } from "./transact.ts";

const BATCH = 1_000;
/** How long somebody can look at what was not sent. */
const DEAD_LETTER_LIFE = "7 days";

const deleteExpiredServiceSessions = (retentionMs: number) => sql.type(noRow)`
  DELETE FROM service_sessions x
  WHERE x.svc_session_id = ANY (ARRAY(
    SELECT y.svc_session_id FROM service_sessions y
    WHERE y.expiry_utc < now() - ${retentionMs}::float8 * interval '1 millisecond'
    ORDER BY y.expiry_utc
    LIMIT ${BATCH}
    FOR UPDATE SKIP LOCKED
  ))`;

/** Writes into the sessions that a mark on their service has ended when that was: by their secret's mark, if it was sooner. */
const revokeMarkedByService = () => sql.type(noRow)`
  UPDATE service_sessions x SET revoked_utc = least(m.sessions_ended_utc,
    (SELECT z.sessions_ended_utc FROM service_secrets z WHERE z.secret_id = x.secret_id))
  FROM services m
  WHERE m.svc_id = x.svc_id AND x.svc_session_id = ANY (ARRAY(
    SELECT y.svc_session_id FROM services s
    JOIN service_sessions y ON y.svc_id = s.svc_id AND y.created_utc <= s.sessions_ended_utc
    WHERE s.sessions_ended_utc IS NOT NULL AND y.revoked_utc IS NULL AND y.expiry_utc > now()
    LIMIT ${BATCH}
    FOR UPDATE OF y SKIP LOCKED
  ))`;

/** Likewise for those that a mark on their secret has ended. */
const revokeMarkedBySecret = () => sql.type(noRow)`
  UPDATE service_sessions x SET revoked_utc = m.sessions_ended_utc
  FROM service_secrets m
  WHERE m.secret_id = x.secret_id AND x.svc_session_id = ANY (ARRAY(
    SELECT y.svc_session_id FROM service_secrets s
    JOIN service_sessions y ON y.secret_id = s.secret_id
    WHERE s.sessions_ended_utc IS NOT NULL AND y.revoked_utc IS NULL AND y.expiry_utc > now()
    LIMIT ${BATCH}
    FOR UPDATE OF y SKIP LOCKED
  ))`;

const deleteExpiredSessions = (retentionMs: number) => sql.type(noRow)`
  DELETE FROM refresh_sessions x
  WHERE x.session_id = ANY (ARRAY(
    SELECT y.session_id FROM refresh_sessions y
    WHERE y.expiry_utc < now() - ${retentionMs}::float8 * interval '1 millisecond'
    ORDER BY y.expiry_utc
    LIMIT ${BATCH}
    FOR UPDATE SKIP LOCKED
  ))`;

const deleteRevokedSessions = (retentionMs: number) => sql.type(noRow)`
  DELETE FROM refresh_sessions x
  WHERE x.session_id = ANY (ARRAY(
    SELECT y.session_id FROM refresh_sessions y
    WHERE y.revoked_utc < now() - ${retentionMs}::float8 * interval '1 millisecond'
    ORDER BY y.revoked_utc
    LIMIT ${BATCH}
    FOR UPDATE SKIP LOCKED
  ))`;

const deleteCodes = () => sql.type(noRow)`
  DELETE FROM otp_codes x
  WHERE x.otp_id = ANY (ARRAY(
    SELECT y.otp_id FROM otp_codes y
    WHERE y.expiry_utc < now() - interval '1 day'
    ORDER BY y.expiry_utc
    LIMIT ${BATCH}
    FOR UPDATE SKIP LOCKED
  ))`;

const deleteThrottles = (lifeMs: number) => sql.type(noRow)`
  DELETE FROM throttles x
  WHERE x.throttle_key_hash = ANY (ARRAY(
    SELECT y.throttle_key_hash FROM throttles y
    WHERE y.window_end_utc < now() - ${lifeMs}::float8 * interval '1 millisecond'
    ORDER BY y.window_end_utc
    LIMIT ${BATCH}
    FOR UPDATE SKIP LOCKED
  ))`;

const deleteLoginNetworks = (lifeMs: number) => sql.type(noRow)`
  DELETE FROM login_networks x
  WHERE x.ctid = ANY (ARRAY(
    SELECT y.ctid FROM login_networks y
    WHERE y.last_login_utc < now() - ${lifeMs}::float8 * interval '1 millisecond'
    ORDER BY y.last_login_utc
    LIMIT ${BATCH}
    FOR UPDATE SKIP LOCKED
  ))`;

// Ids in order, so that two replicas do not wait for each other in a circle.
const deleteDeadLetters = () => sql.type(noRow)`
  SELECT FROM graphile_worker.complete_jobs(ARRAY(
    SELECT j.id FROM graphile_worker.jobs j
    WHERE j.attempts >= j.max_attempts AND j.locked_at IS NULL
      AND j.updated_at < now() - ${DEAD_LETTER_LIFE}::interval
    ORDER BY j.id
    LIMIT ${BATCH}
  ))`;

const inTransactions = async (db: Database, statement: () => QuerySqlToken): Promise<number> => {
  let total = 0;
  for (;;) {
    const { rowCount } = await transact(db, detached(), (tx) => tx.query(statement()));
    total += rowCount;
    if (rowCount < BATCH) return total;
  }
};

type Retention = Omit<Config["purge"], "intervalMs">;

/** Deletes what has ended, in small transactions; answers with how many rows went. */
export const purge = async (
  db: Database,
  { sessionRetentionMs, throttleMs, knownNetworkMs }: Retention,
): Promise<number> => {
  await inTransactions(db, revokeMarkedByService);
  await inTransactions(db, revokeMarkedBySecret);
  const ended = [
    () => deleteExpiredServiceSessions(sessionRetentionMs),
    () => deleteExpiredSessions(sessionRetentionMs),
    () => deleteRevokedSessions(sessionRetentionMs),
    deleteCodes,
    () => deleteThrottles(throttleMs),
    () => deleteLoginNetworks(knownNetworkMs),
    deleteDeadLetters,
  ];
  let total = 0;
  for (const statement of ended) total += await inTransactions(db, statement);
  return total;
};

/** Purges now and then, on every replica: rows that one has locked another passes over. Answers with what stops it. */
export const schedulePurge = (db: Database, config: Config["purge"], log: Log): (() => void) =>
  startPolling(
    () =>
      purge(db, config).then(
        (rows) => log.debug({ rows }, "purged"),
        (error: unknown) => log.warn({ err: error }, "purge failed; the next one tries again"),
      ),
    config.intervalMs,
  ).stop;
