import type { Waiting } from "../rpc/call.ts";

interface CoalescerOptions {
  /** How many loads may be under way at once. */
  readonly underWayMax?: number;
  /** How many keys one load may have. */
  readonly batchMax?: number;
}

/** Asks for one key's value, together with whoever else waits. */
type Coalescer<Key, Value> = (waiting: Waiting, key: Key) => Promise<Value>;

interface Waiter<Key, Value> {
  readonly key: Key;
  readonly resolve: (value: Value) => void;
  readonly reject: (reason: unknown) => void;
}

/**
 * Gathers what is asked for in one turn of the event loop, and while loads are under way, and sends it as one load. There
 * is no timer: who comes alone leaves with his turn, and nobody joins a load that has been sent, so that no answer is older
 * than its question. Sent within the turn, the loads of 128 callers had half as many keys, each load at the
 * cost of a statement.
 *
 * Who gives up ends his own wait alone. An error of a load is that of everybody in it.
 * @param load answers with one value for each key, in their order; it runs by limits of its own, since it serves many.
 */
export const createCoalescer = <Key, Value>(
  load: (keys: readonly Key[]) => Promise<readonly Value[]>,
  { underWayMax = 2, batchMax = 256 }: CoalescerOptions = {},
): Coalescer<Key, Value> => {
  // A set, so that one who gives up leaves it at once however many wait; it keeps the order of their coming.
  const gathered = new Set<Waiter<Key, Value>>();
  let underWay = 0;
  let scheduled = false;

  const take = () => {
    const batch: Waiter<Key, Value>[] = [];
    for (const waiter of gathered) {
      batch.push(waiter);
      gathered.delete(waiter);
      if (batch.length === batchMax) break;
    }
    return batch;
  };

  const send = async (batch: readonly Waiter<Key, Value>[]) => {
    try {
      const values = await load(batch.map(({ key }) => key));
      if (values.length !== batch.length) throw new Error("a load answered with another number of values");
      for (const [index, { resolve }] of batch.entries()) resolve(values[index] as Value);
    } catch (error) {
      for (const { reject } of batch) reject(error);
    }
  };

  const sendNext = () => {
    scheduled = false;
    while (underWay < underWayMax && gathered.size > 0) {
      underWay++;
      void send(take()).finally(() => {
        underWay--;
        schedule();
      });
    }
  };

  const schedule = () => {
    if (scheduled || underWay >= underWayMax || gathered.size === 0) return;
    scheduled = true;
    setImmediate(sendNext);
  };

  return async (waiting, key) => {
    waiting.throwIfOver();
    const { promise, resolve, reject } = Promise.withResolvers<Value>();
    const waiter = { key, resolve, reject };
    const stay = waiting.whenOver((reason) => {
      gathered.delete(waiter);
      reject(reason);
    });
    gathered.add(waiter);
    schedule();
    try {
      return await promise;
    } finally {
      stay();
    }
  };
};
