import { setTimeout as sleep } from "node:timers/promises";
import type { CommonQueryMethods, DatabasePoolConnection, DatabaseTransactionConnection, QuerySqlToken } from "slonik";
import { TIMER_MAX_MS } from "../config-values.ts";
import type { Waiting } from "../rpc/call.ts";
import { Refusal } from "../rpc/refusal.ts";
import { IDLE_MS, SILENCE_MS } from "./connections.ts";
import { withCommit, withLimits } from "./driver.ts";
import { isConflict } from "./faults.ts";
import type { Database, ThrowIfAbandoned, Work } from "./pool.ts";

/** A transaction: what writes takes this, so that nothing is written outside of one. */
export type Tx = DatabaseTransactionConnection;

const ATTEMPTS = 5;
const BACKOFF_MS = 10;

export interface TransactOptions {
  /**
   * Told when a try has ended, committed or not, before anybody else is: also where the caller went away during the
   * commit, or its answer was lost.
   */
  readonly settled?: () => void;
  /** What each statement may take instead of DATABASE_STATEMENT_TIMEOUT, in milliseconds. */
  readonly statementTimeoutMs?: number | undefined;
  /** How long it may do nothing between two statements before the database ends it, in milliseconds. */
  readonly idleMs?: number;
}

/** By so much a statement outlives its call, in milliseconds: a timer may be late, and the answer is DEADLINE, not a fault. */
const DEADLINE_MARGIN_MS = 50;

/** The statement timeout that a transaction needs: none where the connection's own is the one. */
const ownTimeout = (db: Database, waiting: Waiting, limitMs: number | undefined) => {
  const { statementTimeoutMs = Infinity, timeoutByTransaction } = db;
  const ms = Math.min(limitMs ?? statementTimeoutMs, waiting.remainingMs() + DEADLINE_MARGIN_MS);
  const isOwn = Number.isFinite(ms) && (timeoutByTransaction || ms !== statementTimeoutMs);
  return isOwn ? Math.min(ms, TIMER_MAX_MS) : undefined;
};

/** Of each transaction under way the statement that goes with its end. */
const lastStatements = new WeakMap<Tx, { statement: QuerySqlToken | undefined }>();

/**
 * Sends a statement whose answer nobody needs together with the transaction's end, which is one round trip less: a body's
 * later statements come before it. Where another comes to be the last, or `tx` is a savepoint, it is sent at once.
 */
export const queryAtEnd = async (tx: Tx, statement: QuerySqlToken): Promise<void> => {
  const last = lastStatements.get(tx);
  const earlier = last ? last.statement : statement;
  if (last) last.statement = statement;
  if (earlier) await tx.query(earlier);
};

const attempt = <T>(
  body: (tx: Tx) => Promise<T>,
  connection: DatabasePoolConnection,
  throwIfAbandoned: ThrowIfAbandoned,
) =>
  connection.transaction(async (tx) => {
    const last: { statement: QuerySqlToken | undefined } = { statement: undefined };
    lastStatements.set(tx, last);
    const result = await body(tx);
    throwIfAbandoned();
    const { statement } = last;
    // What a body has left running comes too late, and is told so.
    lastStatements.delete(tx);
    if (statement) await withCommit(() => tx.query(statement));
    return result;
  });

const nothing = () => undefined;

/**
 * Runs `body` in one READ COMMITTED transaction.
 *
 * A body locks, reads, decides, writes and records, in that order, and may run more than once: conflicts (SQLSTATE class
 * 40) are tried again with a growing, random pause. A Refusal that it RETURNS is thrown after the commit, so what was
 * written before stands; one that it throws rolls back, and so does a caller who went away before the commit.
 * @throws Refusal CONFLICT when the tries are used up, DATABASE_UNAVAILABLE, OVERLOADED, or the body's own.
 */
export const transact = async <T>(
  db: Database,
  waiting: Waiting,
  body: (tx: Tx) => Promise<T>,
  { settled = nothing, statementTimeoutMs, idleMs }: TransactOptions = {},
): Promise<Exclude<T, Refusal>> => {
  const work: Work<T> = (connection, abandoned) => {
    const overAt = performance.now() + waiting.remainingMs() + DEADLINE_MARGIN_MS;
    const limits = {
      timeoutMs: ownTimeout(db, waiting, statementTimeoutMs),
      idleMs: idleMs ?? (db.timeoutByTransaction ? IDLE_MS : undefined),
      // By the deadline too: who waits behind a hung connection would wait for as long as the longest statement may take.
      ...(statementTimeoutMs !== undefined && {
        silenceMs: statementTimeoutMs + SILENCE_MS,
        silentUntil: overAt + SILENCE_MS,
      }),
    };
    return withLimits(limits, () => attempt(body, connection, abandoned).finally(settled));
  };
  for (let tries = 1; ; tries++) {
    try {
      const result = await db.use(waiting, work);
      if (result instanceof Refusal) throw result;
      return result as Exclude<T, Refusal>;
    } catch (error) {
      if (!(error instanceof Refusal && isConflict(error.cause)) || tries === ATTEMPTS) throw error;
    }
    // Of who gives up meanwhile the next use is refused.
    await sleep(Math.random() * BACKOFF_MS * 2 ** tries, undefined, { signal: waiting.signal }).catch(nothing);
  }
};

/** Reads with single statements, each its own snapshot. */
export const read = <T>(db: Database, waiting: Waiting, query: (db: CommonQueryMethods) => Promise<T>): Promise<T> =>
  db.use(waiting, query);
