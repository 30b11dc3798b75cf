import type { DatabaseTransactionConnection, QuerySqlToken } from "slonik";
import { onTestFinished } from "vitest";
import { openPool } from "./admin.ts";
import { lockWaiters, untilSomebodyWaits } from "./lock-waiters.ts";
import type { TestService } from "./service.ts";

/** Locks rows, or writes them, makes a call that must wait for that, may do something meanwhile, and lets it go on. */
export const heldUp = async <T>(
  { pool }: Pick<TestService, "pool">,
  lock: QuerySqlToken,
  call: () => Promise<T>,
  meanwhile?: (tx: DatabaseTransactionConnection) => Promise<unknown>,
): Promise<T> => {
  const { waited } = await pool.transaction(async (tx) => {
    await tx.query(lock);
    const waiting = call();
    // Awaited below; until then a refusal is nobody's.
    waiting.catch(() => undefined);
    await untilSomebodyWaits(tx);
    await meanwhile?.(tx);
    return { waited: waiting };
  });
  return waited;
};

/** Makes a call while rows are locked, for which it must not wait. */
export const despite = <T>(
  { pool }: Pick<TestService, "pool">,
  lock: QuerySqlToken,
  call: () => Promise<T>,
): Promise<T> =>
  pool.transaction(async (tx) => {
    await tx.query(lock);
    return call();
  });

/** Locks rows by a connection of its own, until they are released or the test has finished. */
export const holdLock = async (databaseUrl: string, lock: QuerySqlToken) => {
  const pool = await openPool(databaseUrl, 1);
  const [locked, released] = [
    Promise.withResolvers<DatabaseTransactionConnection>(),
    Promise.withResolvers<undefined>(),
  ];
  const transaction = pool.transaction(async (tx) => {
    await tx.query(lock);
    locked.resolve(tx);
    await released.promise;
  });
  const tx = await locked.promise;
  const release = async () => {
    released.resolve(undefined);
    await transaction;
    await pool.end();
  };
  onTestFinished(release);
  /** How many connections wait, while it is held. */
  return { release, waiters: () => lockWaiters(tx) };
};
