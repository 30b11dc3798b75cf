import type { DatabasePoolConnection } from "slonik";
import type { Waiting } from "../rpc/call.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import { type Connections, type ConnectionsOptions, openConnections } from "./connections.ts";
import { Abandoned, asRefusal, isReadOnly, sparesConnection } from "./faults.ts";
import { type Gate, createGate } from "../gate.ts";

/** Throws once nobody waits for the work any more: what is not committed by then must not be. */
export type ThrowIfAbandoned = () => void;

export type Work<T> = (connection: DatabasePoolConnection, throwIfAbandoned: ThrowIfAbandoned) => Promise<T>;

/** The database, as the rest of the service sees it: a bounded way to one connection of the pool. */
export interface Database {
  /**
   * Runs `work` on one connection.
   *
   * Ends for the caller when `waiting` does; a statement that is under way then goes on to its own time limit, so that a
   * flood of cancelled calls does not become a flood of reconnects.
   * @throws Refusal DATABASE_UNAVAILABLE or OVERLOADED
   */
  use<T>(waiting: Waiting, work: Work<T>): Promise<T>;
  /** Takes new connections from now on: those it has may be dead, as after a fail-over. */
  renew(): void;
  /** While down, new work and work under way is refused at once: nobody waits for a database that is known to be away. */
  setDown(down: boolean): void;
  /** What a statement may take, in milliseconds; undefined is no limit. */
  readonly statementTimeoutMs: number | undefined;
  /** Whether a transaction must set its timeouts itself, because the connection could not. */
  readonly timeoutByTransaction: boolean;
  readonly load: Gate["load"];
  end(): Promise<void>;
}

interface DatabaseOptions extends ConnectionsOptions {
  /** Told how many seconds each use waited for its connection. */
  readonly onWait?: (seconds: number) => void;
}

const onConnection = async <T>(connections: Connections, throwIfAbandoned: ThrowIfAbandoned, work: Work<T>) => {
  const outcome = await connections.use(async (connection) => {
    try {
      throwIfAbandoned();
      return { value: await work(connection, throwIfAbandoned) };
    } catch (error) {
      // Slonik destroys the connection of a handler that throws: what leaves the connection sound leaves as a value.
      if (sparesConnection(error)) return { error };
      throw error;
    }
  });
  if ("error" in outcome) throw outcome.error;
  return outcome.value;
};

/** Connects when it is first used, and again after a failure: the service starts while the database is away. */
export const openDatabase = (options: DatabaseOptions): Database => {
  const { settings, tracing } = options;
  const newGate = () =>
    createGate({ size: settings.poolMax, queueMax: settings.poolQueue, waitMs: settings.poolWaitMs });
  const underWay = new Set<(reason: Refusal) => void>();
  let gate = newGate();
  let connections = openConnections(options);
  let down = false;

  const renew = () => {
    connections.retire();
    connections = openConnections(options);
  };

  return {
    statementTimeoutMs: settings.statementTimeoutMs,
    timeoutByTransaction: settings.pgBouncer,
    load: () => gate.load(),
    renew,
    setDown(value) {
      if (down === value) return;
      down = value;
      if (!down) return;
      for (const abandon of underWay) abandon(refusal("DATABASE_UNAVAILABLE"));
      // What hangs keeps neither its place at the gate nor its connection: both are free when the database is back.
      const hung = connections;
      gate = newGate();
      connections = openConnections(options);
      void hung.end().catch((error: unknown) => options.log.warn({ err: error }, "pool not ended"));
    },
    async use<T>(waiting: Waiting, work: Work<T>) {
      waiting.throwIfOver();
      if (down) throw refusal("DATABASE_UNAVAILABLE");
      const { promise, resolve, reject } = Promise.withResolvers<T>();
      let abandoned: { readonly reason: unknown } | undefined;
      const abandon = (reason: unknown) => {
        abandoned ??= { reason };
        reject(reason);
      };
      const throwIfAbandoned = () => {
        if (abandoned) throw new Abandoned("nobody waits for it", { cause: abandoned.reason });
      };
      const run = async () => {
        // Who gave up while he waited shall not take a connection from those who did not.
        throwIfAbandoned();
        const used = connections;
        try {
          return await onConnection(used, throwIfAbandoned, work);
        } catch (error) {
          // All the others lead to the same server, whose pings succeed.
          if (isReadOnly(error) && connections === used) renew();
          throw error;
        }
      };
      underWay.add(abandon);
      const stay = waiting.whenOver(abandon);
      gate
        .enter(() => (tracing ? tracing.database("use", run) : run()), waiting, options.onWait)
        .then(resolve, (error: unknown) => reject(asRefusal(error)));
      try {
        return await promise;
      } finally {
        underWay.delete(abandon);
        stay();
      }
    },
    end: () => connections.end(),
  };
};
