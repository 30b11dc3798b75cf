import type { Waiting } from "../rpc/call.ts";

/** How far the stream of audit events has come, as far as this process knows. */
export interface AuditHead {
  /** The last position that is known to be given out. */
  position(): bigint;
  /**
   * Resolves once events behind `position` are known, of the tenant where one is named: at once where there are already.
   * Now and then there is none after all.
   * @throws why `waiting` is over.
   */
  movedPast(position: bigint, tenantId: string | undefined, waiting: Waiting): Promise<void>;
  /**
   * Wakes who waits.
   * @param tenants those of the events since the former position; undefined where they are too many to say.
   */
  advance(position: bigint, tenants: ReadonlySet<string> | undefined): void;
  /** Wakes everybody: the database has lost events, and others may have their positions. */
  restart(position: bigint): void;
}

interface Waiter {
  readonly tenantId: string | undefined;
  readonly wake: () => void;
}

export const createAuditHead = (): AuditHead => {
  const waiters = new Set<Waiter>();
  let head = 0n;
  return {
    position: () => head,
    async movedPast(position, tenantId, waiting) {
      waiting.throwIfOver();
      // An earlier one is that of a database which has lost events meanwhile.
      if (head !== position) return;
      const { promise, resolve, reject } = Promise.withResolvers<undefined>();
      const waiter = { tenantId, wake: () => resolve(undefined) };
      waiters.add(waiter);
      const stay = waiting.whenOver(reject);
      try {
        await promise;
      } finally {
        waiters.delete(waiter);
        stay();
      }
    },
    advance(position, tenants) {
      if (position === head) return;
      head = position;
      for (const { tenantId, wake } of waiters) {
        if (!tenants || tenantId === undefined || tenants.has(tenantId)) wake();
      }
    },
    restart(position) {
      head = position;
      for (const { wake } of waiters) wake();
    },
  };
};
