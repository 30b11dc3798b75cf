import { readFileSync } from "node:fs";
import {
  type DatabasePool,
  type DatabasePoolConnection,
  type Interceptor,
  SchemaValidationError,
  createPool,
  createTypeParserPreset,
} from "slonik";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import type { Waiting } from "../rpc/call.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import type { Tracing } from "../tracing.ts";
import { DatabaseSilent, asRefusal, sparesConnection } from "./faults.ts";
import { type Gate, createGate } from "./gate.ts";

// A server that is alive ends a statement by its own timeout; only a hung one is still silent this much later.
const SILENCE_MS = 500;

const rowParser: Interceptor = {
  name: "row-parser",
  transformRow: ({ resultParser }, query, row) => {
    if (!resultParser) return row;
    const result = resultParser["~standard"].validate(row);
    if (result instanceof Promise) throw new TypeError("row schemas are synchronous");
    if (result.issues) throw new SchemaValidationError(query, row, result.issues);
    return result.value as typeof row;
  },
};

/** The database, as the rest of the service sees it: a bounded way to one connection of the pool. */
export interface Database {
  /**
   * Runs `work` on one connection.
   *
   * Ends for the caller when `waiting` does; a statement that is under way then goes on to its own time limit, so that a
   * flood of cancelled calls does not become a flood of reconnects.
   * @throws Refusal DATABASE_UNAVAILABLE or OVERLOADED
   */
  use<T>(waiting: Waiting, work: (connection: DatabasePoolConnection) => Promise<T>): Promise<T>;
  /** While down, new work and work under way is refused at once: nobody waits for a database that is known to be away. */
  setDown(down: boolean): void;
  /** What a statement may take, in milliseconds; undefined is no limit. */
  readonly statementTimeoutMs: number | undefined;
  /** Whether a transaction must set its timeout itself, because the connection could not. */
  readonly timeoutByTransaction: boolean;
  readonly load: Gate["load"];
  end(): Promise<void>;
}

export interface DatabaseOptions {
  readonly url: string;
  readonly settings: Config["database"];
  readonly log: Log;
  /** Told how many seconds each use waited for its connection. */
  readonly onWait?: (seconds: number) => void;
  readonly interceptors?: readonly Interceptor[];
  readonly tracing?: Tracing | undefined;
}

const connectionUri = (url: string, { tls, pgBouncer }: Config["database"]): string => {
  const uri = new URL(url);
  if (tls === "off") uri.searchParams.set("sslmode", "disable");
  if (tls === "verify") uri.searchParams.delete("sslmode");
  // PgBouncer refuses start-up parameters that it does not track; jit costs more than it saves on short statements.
  if (!pgBouncer && !uri.searchParams.has("options")) uri.searchParams.set("options", "-c jit=off");
  return uri.toString();
};

const createSlonikPool = ({ url, settings, interceptors = [] }: DatabaseOptions): Promise<DatabasePool> =>
  createPool(connectionUri(url, settings), {
    maxPoolSize: settings.poolMax,
    connectionTimeout: settings.connectTimeoutMs,
    connectionRetryLimit: 0,
    statementTimeout: settings.pgBouncer ? "DISABLE_TIMEOUT" : (settings.statementTimeoutMs ?? "DISABLE_TIMEOUT"),
    idleInTransactionSessionTimeout: settings.pgBouncer ? "DISABLE_TIMEOUT" : 30_000,
    idleTimeout: settings.idleTimeoutMs,
    gracefulTerminationTimeout: SILENCE_MS,
    queryRetryLimit: 0,
    transactionRetryLimit: 0,
    // Connections carry no state from use to use, since only SET LOCAL is used; DISCARD ALL would cost a round trip.
    resetConnection: () => Promise.resolve(),
    typeParsers: createTypeParserPreset(),
    interceptors: [rowParser, ...interceptors],
    ...(settings.tls === "verify" && {
      ssl: { rejectUnauthorized: true, ...(settings.tlsCaFile && { ca: readFileSync(settings.tlsCaFile) }) },
    }),
  });

const within = async <T>(limitMs: number, work: Promise<T>): Promise<T> => {
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new DatabaseSilent("no answer from the database")), limitMs);
  try {
    return await Promise.race([work, promise]);
  } finally {
    clearTimeout(timer);
  }
};

/** Opens the pool when it is first used, and again after a failure: the service starts while the database is away. */
export const openDatabase = (options: DatabaseOptions): Database => {
  const { settings, log, tracing } = options;
  const gate = createGate({ size: settings.poolMax, queueMax: settings.poolQueue, waitMs: settings.poolWaitMs });
  const silenceMs = (settings.statementTimeoutMs ?? 30_000) + SILENCE_MS;
  const underWay = new Set<(reason: Refusal) => void>();
  let pool: Promise<DatabasePool> | undefined;
  let down = false;

  const opened = () => {
    pool ??= createSlonikPool(options).then(
      (created) => {
        created.on("error", (error) => log.warn({ err: error }, "database connection lost"));
        return created;
      },
      (error: unknown) => {
        pool = undefined;
        throw error;
      },
    );
    return pool;
  };

  const onConnection = async <T>(waiting: Waiting, work: (connection: DatabasePoolConnection) => Promise<T>) => {
    const slonik = await within(settings.connectTimeoutMs + SILENCE_MS, opened());
    const outcome = await slonik.connect(async (connection) => {
      if (waiting.signal.aborted) return { error: waiting.signal.reason as unknown };
      try {
        return { value: await within(silenceMs, work(connection)) };
      } catch (error) {
        // Slonik destroys the connection of a handler that throws: what leaves the connection sound leaves as a value.
        if (sparesConnection(error)) return { error };
        throw error;
      }
    });
    if ("error" in outcome) throw outcome.error;
    return outcome.value;
  };

  return {
    statementTimeoutMs: settings.statementTimeoutMs,
    timeoutByTransaction: settings.pgBouncer,
    load: gate.load,
    setDown(value) {
      down = value;
      if (down) for (const reject of underWay) reject(refusal("DATABASE_UNAVAILABLE"));
    },
    async use<T>(waiting: Waiting, work: (connection: DatabasePoolConnection) => Promise<T>) {
      waiting.signal.throwIfAborted();
      if (down) throw refusal("DATABASE_UNAVAILABLE");
      const { promise, resolve, reject } = Promise.withResolvers<T>();
      const abort = () => reject(waiting.signal.reason);
      const run = () => onConnection(waiting, work);
      underWay.add(reject);
      waiting.signal.addEventListener("abort", abort, { once: true });
      gate
        .enter(() => (tracing ? tracing.query("use", run) : run()), waiting.signal, options.onWait)
        .then(resolve, (error: unknown) => reject(asRefusal(error)));
      try {
        return await promise;
      } finally {
        underWay.delete(reject);
        waiting.signal.removeEventListener("abort", abort);
      }
    },
    async end() {
      const ending = await pool?.catch(() => undefined);
      pool = undefined;
      await ending?.end();
    },
  };
};
