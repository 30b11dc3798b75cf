import { type CommonQueryMethods, sql } from "slonik";
import { expect } from "vitest";
import { z } from "zod";

/** How many connections wait for a lock. */
export const lockWaiters = async (tx: CommonQueryMethods): Promise<number> => {
  // A transaction sees the activity of its first look, until it says otherwise.
  await tx.query(sql.unsafe`SELECT pg_stat_clear_snapshot()`);
  return tx.oneFirst(sql.type(z.object({ count: z.number() }))`
    SELECT count(*)::int AS count FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'`);
};

/** Resolves once a connection waits for a lock. */
export const untilSomebodyWaits = (db: CommonQueryMethods): Promise<void> =>
  expect.poll(() => lockWaiters(db), { interval: 10, timeout: 10_000 }).toBeGreaterThan(0);
