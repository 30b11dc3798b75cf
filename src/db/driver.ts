import { AsyncLocalStorage } from "node:async_hooks";
import { Socket } from "node:net";
import { Client, type ClientConfig, types } from "pg";
import {
  BackendTerminatedError,
  type DriverConfiguration,
  type DriverFactory,
  createDriverFactory,
  parseDsn,
} from "slonik";
import { afterSilence } from "../timers.ts";
import type { Tracing } from "../tracing.ts";
import { DatabaseSilent, isUnusableStatement } from "./faults.ts";
import { type SendOptions, createSender } from "./sending.ts";

// Node-postgres takes few parameters of a connection's beginning, and declares none of what sends them.
declare module "pg" {
  interface Client {
    getStartupConf(): Readonly<Record<string, string>>;
  }
}

/**
 * Times are read in one style, and a database or a role may have another. PgBouncer takes this parameter, which it tracks,
 * and sets it anew for each transaction unless it is written as PostgreSQL reports it.
 */
export class IsoClient extends Client {
  override getStartupConf() {
    return { ...super.getStartupConf(), datestyle: "ISO, MDY" };
  }
}

/** How long a connection may take to say good-bye. */
export const FAREWELL_MS = 500;
const TEXT_ARRAY = 1009;
// Built-in types never change their OIDs; asking for them would be one more connection, on which nobody hears an error.
const OIDS: Readonly<Record<string, readonly [type: number, array: number]>> = {
  int8: [20, 1016],
  date: [1082, 1182],
  timestamp: [1114, 1115],
  timestamptz: [1184, 1185],
  interval: [1186, 1187],
  numeric: [1700, 1231],
};

type Parse = (text: string) => unknown;

const usualParser = types.getTypeParser as (oid: number) => Parse;
const textArray = (text: string) => usualParser(TEXT_ARRAY)(text) as (string | null)[];

const typeParsersOf = ({ typeParsers }: DriverConfiguration): ClientConfig["types"] => {
  const parsers = new Map<number, Parse>();
  for (const { name, parse } of typeParsers) {
    const oids = OIDS[name];
    if (!oids) throw new Error(`the driver knows no OID of the type ${name}`);
    parsers.set(oids[0], parse);
    parsers.set(oids[1], (text) => textArray(text).map((item) => (item === null ? null : parse(item))));
  }
  return { getTypeParser: (oid: number) => parsers.get(oid) ?? usualParser(oid) };
};

const sslOf = (ssl: DriverConfiguration["ssl"], mode: string | undefined): ClientConfig["ssl"] => {
  if (ssl) return ssl;
  if (mode === "no-verify") return { rejectUnauthorized: false };
  return mode === "require";
};

const numberOf = (limit: "DISABLE_TIMEOUT" | number) => (limit === "DISABLE_TIMEOUT" ? undefined : limit);

const present = (config: object): ClientConfig =>
  Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined));

/** Where a connection leads and as whom, as node-postgres wants it. */
export const endpointOf = (connectionUri: string, ssl: DriverConfiguration["ssl"]): ClientConfig => {
  const dsn = parseDsn(connectionUri);
  return present({
    host: dsn.host,
    port: dsn.port,
    user: dsn.username,
    password: dsn.password,
    database: dsn.databaseName,
    application_name: dsn.applicationName,
    options: dsn.options,
    ssl: sslOf(ssl, dsn.sslMode),
    keepAlive: true,
  });
};

const clientConfigOf = (configuration: DriverConfiguration): ClientConfig => ({
  ...endpointOf(configuration.connectionUri, configuration.ssl),
  ...present({
    types: typeParsersOf(configuration),
    connectionTimeoutMillis: numberOf(configuration.connectionTimeout),
    statement_timeout: numberOf(configuration.statementTimeout),
    idle_in_transaction_session_timeout: numberOf(configuration.idleInTransactionSessionTimeout),
  }),
});

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
}

// Slonik hands a query nothing of who sent it.
const asked = new AsyncLocalStorage<Asked>();

/** Runs a transaction within these limits. */
export const withLimits = <T>(
  limits: Pick<Asked, "silenceMs" | "timeoutMs" | "idleMs">,
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

/** A statement without what stands in parentheses: its subqueries, and the beginnings of a WITH. */
const outermost = (text: string): string => {
  const shorter = text.replace(/\([^()]*\)/g, "");
  return shorter === text ? text : outermost(shorter);
};

/** What a statement is called in traces: the name that it is prepared under, or what it does to which table. No values. */
const summaryOf = (text: string, name: string | undefined): string => {
  if (name !== undefined) return name;
  const own = outermost(text);
  const [verb = ""] = /\b(?:SELECT|INSERT|UPDATE|DELETE)\b/.exec(own) ?? /\w+/.exec(own) ?? [];
  const [, table = ""] = /\b(?:FROM|INTO|UPDATE)\s+(\w+)/.exec(own) ?? [];
  return `${verb} ${table}`.trim();
};

/**
 * Slonik's own driver, but for what ends a process or hangs it: that one stops listening to a connection which it gave up,
 * so a later error of the socket ends the process, and it waits for a statement's answer for ever.
 */
export const createDriver = ({ silenceMs, prepares, tracing }: DriverOptions): DriverFactory =>
  createDriverFactory(({ driverConfiguration }) => {
    const config = clientConfigOf(driverConfiguration);
    return Promise.resolve({
      createPoolClient: ({ clientEventEmitter }) => {
        const socket = new Socket();
        const client = new IsoClient({ ...config, pipeline: true, stream: () => socket });
        let broken: BackendTerminatedError | undefined;
        const send = createSender(client);

        const breakOff = (cause: Error) => {
          broken ??= new BackendTerminatedError(cause);
          socket.destroy();
          return broken;
        };
        // What broke the connection says more than what its statement then fails with.
        const whatBroke = (error: unknown) => broken ?? error;
        client.on("error", (error) => {
          const fault = breakOff(error);
          if (clientEventEmitter.listenerCount("error") > 0) clientEventEmitter.emit("error", fault);
        });
        client.on("notice", ({ message = "" }) => clientEventEmitter.emit("notice", { message }));

        const query = async (text: string, values: unknown[] = [], name?: string) => {
          // Also what a transaction's end is told: a ROLLBACK on a silent connection would be silence once more.
          if (broken) throw broken;
          const { silenceMs: allowedMs = silenceMs, ...options } = asked.getStore() ?? {};
          try {
            const statement = { text, values, ...(prepares && name !== undefined && { name }) };
            // A statement and the commit behind it are two for which PostgreSQL may take its time.
            return await within(options.commits ? 2 * allowedMs : allowedMs, send(statement, options));
          } catch (error) {
            throw error instanceof DatabaseSilent || isUnusableStatement(error)
              ? breakOff(error as Error)
              : whatBroke(error);
          }
        };

        return Promise.resolve({
          connect: async () => {
            await client.connect();
          },
          end: async () => {
            const farewell = setTimeout(() => socket.destroy(), FAREWELL_MS);
            await client.end();
            clearTimeout(farewell);
          },
          query: async (text: string, values?: unknown[], options?: { readonly name?: string }) => {
            const send = () => query(text, values, options?.name);
            const sent = tracing ? tracing.database(summaryOf(text, options?.name), send) : send();
            const { command, fields, rowCount, rows } = await sent;
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
        });
      },
    });
  });
