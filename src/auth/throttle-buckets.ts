import { sql } from "slonik";
import { z } from "zod";
import { column } from "../db/columns.ts";
import type { Database } from "../db/pool.ts";
import { read } from "../db/transact.ts";
import { type Waiting, detached } from "../rpc/call.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";

/** Counts tries of one kind in a window of time, on all replicas together. */
export interface Bucket {
  /** A keyed hash: what is counted may be personal data. */
  readonly key: string;
  /** How many tries a window takes. */
  readonly max: number;
  readonly windowMs: number;
  /** Whether one that is full in several windows in a row then refuses for longer than a window. */
  readonly grows: boolean;
}

/** A try that all of its buckets have counted. */
interface Counted {
  /** Milliseconds until the bucket takes another try; 0 where it would now. */
  fullForMs(key: string): number;
  /** Takes the try out of its buckets again, where their windows are still the same. */
  giveBack(): Promise<void>;
}

/** A full bucket refuses for at most so many windows after its own. */
const EXTRA_WINDOWS_MAX = 5;
const STRIKES_MAX = 10;
/** How often the statement is run at most where rows are missing: mostly the second time finds them all. */
const ROUNDS = 5;

const triedRow = z.object({
  throttle_key_hash: z.string(),
  /** Set where the bucket refuses. */
  refused_for_ms: z.number().nullable(),
  /** Set where the bucket has counted: which window, to the microsecond. */
  window_end_text: z.string().nullable(),
  full_for_ms: z.number(),
});
type TriedRow = z.output<typeof triedRow>;

/**
 * Counts a try in all of its buckets, or in none.
 *
 * Present rows are locked in the order of their keys and only then decided over, so no two tries wait for each other and
 * none is counted by halves. A row that is missing cannot be locked. Where one is, it is inserted with its count; where
 * several are, they are inserted with none. Where somebody else was faster with the one, or several were missing, nothing
 * is counted, and the statement is to be run again.
 *
 * A tenant's row is locked by all tries in it, one after the other, and the lock is held until the commit: it does not
 * wait for the disk. What a crash of the database loses is the counts of its last moments.
 *
 * A bucket that was full refuses to its window's end and for 0, 1, 3, 5 windows more, the more windows in a row it was
 * full. That is read from its row and not written into it: a try given back takes it back too.
 */
const countTry = (buckets: readonly Bucket[]) => {
  const lengths = sql.array(column(buckets, "windowMs"), "float8");
  return sql.prepared("count-try", triedRow)`
  WITH asked AS (
    SELECT a.key, a.hit_max, a.window_ms * interval '1 millisecond' AS length, a.grows
    FROM unnest(${sql.array(column(buckets, "key"), "text")}, ${sql.array(column(buckets, "max"), "int4")}, ${lengths},
      ${sql.array(column(buckets, "grows"), "bool")}) AS a (key, hit_max, window_ms, grows)
  ), locked AS (
    SELECT t.throttle_key_hash, t.hit_count, t.window_end_utc, t.strike_count
    FROM throttles t
    WHERE t.throttle_key_hash IN (SELECT a.key FROM asked a)
    ORDER BY t.throttle_key_hash COLLATE "C"
    FOR NO KEY UPDATE
  ), found AS (
    SELECT a.key, a.hit_max, a.length, a.grows, l.hit_count, l.hit_count >= a.hit_max AS was_full,
      l.window_end_utc + a.length * CASE
        WHEN a.grows AND l.hit_count >= a.hit_max THEN least(2 ^ l.strike_count - 1, ${EXTRA_WINDOWS_MAX}::float8)
        ELSE 0 END AS end_utc
    FROM asked a
    LEFT JOIN locked l ON l.throttle_key_hash = a.key
  ), verdict AS (
    SELECT coalesce(bool_or(f.was_full AND f.end_utc > now()), false) AS refused,
      count(*) FILTER (WHERE f.hit_count IS NULL) AS missing
    FROM found f
  ), made AS (
    INSERT INTO throttles (throttle_key_hash, hit_count, window_end_utc)
    SELECT f.key, CASE WHEN v.missing = 1 THEN 1 ELSE 0 END, now() + f.length
    FROM found f CROSS JOIN verdict v
    WHERE f.hit_count IS NULL AND NOT v.refused
    ORDER BY f.key COLLATE "C"
    ON CONFLICT (throttle_key_hash) DO NOTHING
    RETURNING throttle_key_hash, hit_count, window_end_utc, strike_count
  ), counted AS (
    UPDATE throttles t SET
      hit_count = CASE WHEN f.end_utc > now() THEN t.hit_count + 1 ELSE 1 END,
      window_end_utc = CASE WHEN f.end_utc > now() THEN t.window_end_utc ELSE now() + f.length END,
      strike_count = CASE
        WHEN f.end_utc > now() THEN t.strike_count
        WHEN f.was_full AND f.end_utc + f.length > now() THEN least(t.strike_count + 1, ${STRIKES_MAX}::int4)
        ELSE 0 END
    FROM found f CROSS JOIN verdict v
    WHERE t.throttle_key_hash = f.key AND NOT v.refused
      AND v.missing = (SELECT count(*) FROM made m WHERE m.hit_count = 1)
    RETURNING t.throttle_key_hash, t.hit_count, t.window_end_utc, t.strike_count
  ), hit AS (
    SELECT m.throttle_key_hash, m.hit_count, m.window_end_utc, m.strike_count FROM made m WHERE m.hit_count = 1
    UNION ALL
    SELECT c.throttle_key_hash, c.hit_count, c.window_end_utc, c.strike_count FROM counted c
  )
  SELECT f.key AS throttle_key_hash,
    CASE WHEN f.was_full AND f.end_utc > now()
      THEN (extract(epoch FROM f.end_utc - now()) * 1000)::float8 END AS refused_for_ms,
    h.window_end_utc::text AS window_end_text,
    CASE WHEN h.hit_count >= f.hit_max THEN (extract(epoch FROM h.window_end_utc - now() + f.length * CASE
        WHEN f.grows THEN least(2 ^ h.strike_count - 1, ${EXTRA_WINDOWS_MAX}::float8)
        ELSE 0 END) * 1000)::float8
      ELSE 0 END AS full_for_ms
  FROM found f
  CROSS JOIN (SELECT set_config('synchronous_commit', 'off', true)) unflushed
  LEFT JOIN hit h ON h.throttle_key_hash = f.key`;
};

const takenBackRow = z.object({ throttle_key_hash: z.string() });

/** All rows are locked, in the order of their keys, before the first is written: as in a count. */
const takeBack = (keys: readonly string[], windowEnds: readonly string[]) => sql.prepared(
  "take-try-back",
  takenBackRow,
)`
  WITH counted AS (
    SELECT a.key, a.window_end_utc
    FROM unnest(${sql.array(keys, "text")}, ${sql.array(windowEnds, "timestamptz")}) AS a (key, window_end_utc)
  ), locked AS (
    SELECT t.throttle_key_hash
    FROM throttles t
    JOIN counted c ON c.key = t.throttle_key_hash AND c.window_end_utc = t.window_end_utc
    ORDER BY t.throttle_key_hash COLLATE "C"
    FOR NO KEY UPDATE OF t
  )
  UPDATE throttles t SET hit_count = greatest(t.hit_count - 1, 0)
  FROM (SELECT set_config('synchronous_commit', 'off', true)) unflushed
  WHERE t.throttle_key_hash = ANY (ARRAY(SELECT l.throttle_key_hash FROM locked l))
  RETURNING t.throttle_key_hash`;

const isCounted = (rows: readonly TriedRow[]) => rows.every((row) => row.window_end_text !== null);

const giveBack = async (db: Database, rows: readonly TriedRow[]): Promise<void> => {
  const windowEnds = rows.flatMap((row) => row.window_end_text ?? []);
  // Also where the caller has gone meanwhile: who succeeded has made no try that failed.
  await read(db, detached(), (connection) => connection.any(takeBack(column(rows, "throttle_key_hash"), windowEnds)));
};

const nothing = () => undefined;

const runCount = async (db: Database, waiting: Waiting, buckets: readonly Bucket[]): Promise<readonly TriedRow[]> => {
  const sent: { answer?: Promise<readonly TriedRow[]> } = {};
  try {
    return await read(db, waiting, (connection) => (sent.answer = connection.any(countTry(buckets))));
  } catch (error) {
    // Whose caller goes away meanwhile is counted all the same, by a statement that nobody waits for. The window forgets
    // what this cannot give back.
    void sent.answer?.then((rows) => (isCounted(rows) ? giveBack(db, rows) : undefined)).catch(nothing);
    throw error;
  }
};

/** When to try again where a bucket is full of tries under way, in milliseconds: any moment may give one back. */
const SOON_MS = 1_000;

/**
 * Counts a try by one statement, which is a transaction of its own: what is rolled back elsewhere stays counted.
 * @param isUnderWay whether a bucket has tries that may be given back yet.
 * @throws RATE_LIMITED where a bucket is full, with the time until all of those take another; nothing is counted then.
 */
export const countInBuckets = async (
  db: Database,
  waiting: Waiting,
  buckets: readonly Bucket[],
  isUnderWay: (key: string) => boolean,
): Promise<Counted> => {
  for (let round = 1; round <= ROUNDS; round++) {
    const rows = await runCount(db, waiting, buckets);
    const waits = rows.map(({ throttle_key_hash: key, refused_for_ms: ms }) =>
      Math.ceil(Math.min(ms ?? 0, isUnderWay(key) ? SOON_MS : Infinity)),
    );
    const retryAfterMs = Math.max(...waits);
    if (retryAfterMs > 0) throw new Refusal("RATE_LIMITED", {}, { retryAfterMs });
    if (!isCounted(rows)) continue;
    return {
      fullForMs: (key) => Math.ceil(rows.find((row) => row.throttle_key_hash === key)?.full_for_ms ?? 0),
      giveBack: () => giveBack(db, rows),
    };
  }
  throw refusal("CONFLICT");
};
