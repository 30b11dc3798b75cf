import { AsyncLocalStorage } from "node:async_hooks";
import { Socket } from "node:net";
import type { ClientConfig } from "pg";
import { BackendTerminatedError, type DriverClientEventEmitter, type DriverFactory, createDriverFactory } from "slonik";
import { afterSilence } from "../timers.ts";
import type { Tracing } from "../tracing.ts";
import { IsoClient, clientConfigOf } from "./client-config.ts";
import { DatabaseSilent, isUnusableStatement } from "./faults.ts";
import { type SendOptions, createSender } from "./sending.ts";
import { summaryOf } from "./statement-summary.ts";

/** How long a connection may take to say good-bye. */
export const FAREWELL_MS = 500;
const within = async <T>(limitMs: number, work: Promise<T>): Promise<T> => {
  const { promise, reject } = Promise.withResolvers<never>();
  const spare = afterSilence(limitMs, () => reject(new DatabaseSilent("no answer from the database")));
  try {
    return await Promise.race([work, promise]);
  } finally {
    spare();
  }
};

/** What whoever sends a statement asks for with it. */
interface Asked extends SendOptions {
  /** How long an answer may be left out, instead of what the driver was made with, in milliseconds. */
  readonly silenceMs?: number | undefined;
  /** From when on nobody waits for an answer, by the monotonic clock: one that is due then has only a good-bye's time. */
  readonly silentUntil?: number | undefined;
}

// Slonik hands a query nothing of who sent it.
const asked = new AsyncLocalStorage<Asked>();

/** Runs a transaction within these limits. */
export const withLimits = <T>(
  limits: Pick<Asked, "silenceMs" | "silentUntil" | "timeoutMs" | "idleMs">,
  work: () => Promise<T>,
): Promise<T> => asked.run(limits, work);

/** Runs `work`, which is its transaction's last statement: the end goes with it. */
export const withCommit = <T>(work: () => Promise<T>): Promise<T> =>
  asked.run({ ...asked.getStore(), commits: true }, work);

interface DriverOptions {
  /** How long each statement's answer may take, in milliseconds; the connection is then given up. */
  readonly silenceMs: number;
  /**
   * Whether a statement with a name is prepared once for a connection; a PgBouncer may not know of it. Names are for what
   * finds its rows by their keys, and has one plan whatever is asked: planning is most of what such a statement costs.
   */
  readonly prepares: boolean;
  readonly tracing?: Tracing | undefined;
}

/** Opens one connection of the pool. */
const openConnection = (config: ClientConfig, options: DriverOptions, events: DriverClientEventEmitter) => {
  const { silenceMs, prepares, tracing } = options;
  const socket = new Socket();
  const client = new IsoClient({ ...config, pipeline: true, stream: () => socket });
  const send = createSender(client);
  let broken: BackendTerminatedError | undefined;

  const breakOff = (cause: Error) => {
    broken ??= new BackendTerminatedError(cause);
    socket.destroy();
    return broken;
  };
  // What broke the connection says more than what its statement then fails with.
  const whatBroke = (error: unknown) => broken ?? error;
  client.on("error", (error) => {
    const fault = breakOff(error);
    if (events.listenerCount("error") > 0) events.emit("error", fault);
  });

  const query = async (text: string, values: unknown[] = [], name?: string) => {
    // Also what a transaction's end is told: a ROLLBACK on a silent connection would be silence once more.
    if (broken) throw broken;
    const { silenceMs: oneMs = silenceMs, silentUntil = Infinity, ...limits } = asked.getStore() ?? {};
    // A statement and the commit behind it are two for which PostgreSQL may take its time.
    const bothMs = limits.commits ? 2 * oneMs : oneMs;
    const allowedMs = Math.min(bothMs, Math.max(silentUntil - performance.now(), FAREWELL_MS));
    try {
      const statement = { text, values, ...(prepares && name !== undefined && { name }) };
      return await within(allowedMs, send(statement, limits));
    } catch (error) {
      throw error instanceof DatabaseSilent || isUnusableStatement(error) ? breakOff(error as Error) : whatBroke(error);
    }
  };

  return {
    connect: async () => {
      await client.connect();
    },
    end: async () => {
      const farewell = setTimeout(() => socket.destroy(), FAREWELL_MS);
      await client.end();
      clearTimeout(farewell);
    },
    query: async (text: string, values?: unknown[], named?: { readonly name?: string }) => {
      const ask = () => query(text, values, named?.name);
      const answer = tracing ? tracing.database(summaryOf(text, named?.name), ask) : ask();
      const { command, fields, rowCount, rows } = await answer;
      return {
        command: command as never,
        fields: fields.map(({ name, dataTypeID }) => ({ name, dataTypeId: dataTypeID })),
        rowCount,
        rows: rows as Record<string, unknown>[],
      };
    },
    stream: () => {
      throw new Error("rows are not streamed");
    },
  };
};

/**
 * Slonik's own driver, but for what ends a process or hangs it: that one stops listening to a connection which it gave up,
 * so a later error of the socket ends the process, and it waits for a statement's answer for ever.
 */
export const createDriver = (options: DriverOptions): DriverFactory =>
  createDriverFactory(({ driverConfiguration }) => {
    const config = clientConfigOf(driverConfiguration);
    return Promise.resolve({
      createPoolClient: ({ clientEventEmitter }) =>
        Promise.resolve(openConnection(config, options, clientEventEmitter)),
    });
  });
