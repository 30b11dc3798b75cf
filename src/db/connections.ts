import { readFileSync, statSync } from "node:fs";
import type { ConnectionOptions } from "node:tls";
import {
  type DatabasePool,
  type DatabasePoolConnection,
  type Interceptor,
  SchemaValidationError,
  createPool,
  createTypeParserPreset,
} from "slonik";
import { type Config, ConfigError } from "../config.ts";
import { TIMER_MAX_MS } from "../config-values.ts";
import type { Log } from "../log.ts";
import { parseCertificates } from "../rpc/certificate-files.ts";
import type { Tracing } from "../tracing.ts";
import { WITHOUT_WAITING } from "../without-waiting.ts";
import { createDriver } from "./driver.ts";
import { timestamptzParser } from "./timestamps.ts";

// Slonik's own logger quotes rows and what callers sent, and ROARR_LOG in the environment would turn it on.
Object.assign((globalThis as { ROARR?: object }).ROARR ?? {}, { write: () => undefined });

/** A server that is alive ends a statement by its own timeout; only a hung one is still silent this much later. */
export const SILENCE_MS = 500;
/** What a replica has locked that is gone without a word is free again this much later. */
export const IDLE_MS = 30_000;
/** Where statements have no limit of their own. */
const NO_TIMEOUT_MS = 30_000;
/** How long a statement's answer is waited for, in milliseconds. */
export const answerMs = ({ statementTimeoutMs }: Config["database"]): number =>
  Math.min((statementTimeoutMs ?? NO_TIMEOUT_MS) + SILENCE_MS, TIMER_MAX_MS);

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

export interface ConnectionsOptions {
  readonly url: string;
  readonly settings: Config["database"];
  readonly log: Log;
  readonly interceptors?: readonly Interceptor[];
  readonly tracing?: Tracing | undefined;
}

/** One slonik pool, and who uses it. */
export interface Connections {
  use<T>(work: (connection: DatabasePoolConnection) => Promise<T>): Promise<T>;
  /** For connections that may be dead: takes no new user, and ends when the last one has gone. */
  retire(): void;
  /** Ends all connections, users or none. */
  end(): Promise<void>;
}

/** The URL with what the settings make of it. */
export const connectionUri = (url: string, { tls, pgBouncer }: Config["database"]): string => {
  const uri = new URL(url);
  if (tls === "off") uri.searchParams.set("sslmode", "disable");
  if (tls === "verify") uri.searchParams.delete("sslmode");
  // PgBouncer refuses start-up parameters that it does not track; jit costs more than it saves on short statements.
  if (!pgBouncer && !uri.searchParams.has("options")) {
    uri.searchParams.set("options", "-c jit=off -c default_transaction_isolation=read\\ committed");
  }
  if (!uri.searchParams.has("application_name")) uri.searchParams.set("application_name", "auth-service");
  return uri.toString();
};

const readBytes = (file: string): Buffer => {
  try {
    // What is read again for each connection: a pipe would be empty by then.
    if (statSync(file).isFIFO()) throw new ConfigError(["DATABASE_TLS_CA_FILE must be a file, and no pipe"]);
    return readFileSync(file, { flag: WITHOUT_WAITING });
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    throw new ConfigError([`DATABASE_TLS_CA_FILE cannot be read: ${code}`]);
  }
};

const readCa = (file: string, known?: Buffer): Buffer => {
  const found = readBytes(file);
  if (!known?.equals(found)) parseCertificates("databaseCaFile", found);
  return found;
};

/**
 * What TLS must verify, where the settings and not the URL say so. Each connection reads the file of authorities, which may
 * be renewed, and takes the former where it cannot, or the file is half written.
 * @throws ConfigError where the file is of no use now.
 */
export const verifiedTls = ({ tls, tlsCaFile }: Config["database"]): ConnectionOptions | undefined => {
  if (tls !== "verify") return undefined;
  if (tlsCaFile === undefined) return { rejectUnauthorized: true };
  let known = readCa(tlsCaFile);
  return {
    rejectUnauthorized: true,
    get ca() {
      try {
        known = readCa(tlsCaFile, known);
      } catch {
        // To throw here would end the process: node-postgres asks in a listener of its socket.
      }
      return known;
    },
  };
};

// Asynchronous, so that a file which is away while new connections are opened fails those alone.
const createSlonikPool = async ({
  url,
  settings,
  interceptors = [],
  tracing,
}: ConnectionsOptions): Promise<DatabasePool> => {
  const ssl = verifiedTls(settings);
  return createPool(connectionUri(url, settings), {
    driverFactory: createDriver({
      silenceMs: answerMs(settings),
      prepares: !settings.pgBouncer,
      tracing,
    }),
    maxPoolSize: settings.poolMax,
    connectionTimeout: settings.connectTimeoutMs,
    connectionRetryLimit: 0,
    statementTimeout: settings.pgBouncer ? "DISABLE_TIMEOUT" : (settings.statementTimeoutMs ?? "DISABLE_TIMEOUT"),
    idleInTransactionSessionTimeout: settings.pgBouncer ? "DISABLE_TIMEOUT" : IDLE_MS,
    idleTimeout: settings.idleTimeoutMs,
    gracefulTerminationTimeout: SILENCE_MS,
    queryRetryLimit: 0,
    transactionRetryLimit: 0,
    // Connections carry no state from use to use, since only SET LOCAL is used; DISCARD ALL would cost a round trip.
    resetConnection: () => Promise.resolve(),
    typeParsers: [...createTypeParserPreset().filter(({ name }) => name !== timestamptzParser.name), timestamptzParser],
    interceptors: [rowParser, ...interceptors],
    ...(ssl && { ssl }),
  });
};

/** Connects when it is first used. */
export const openConnections = (options: ConnectionsOptions): Connections => {
  const opening = createSlonikPool(options).then((pool) => {
    pool.on("error", (error) => options.log.warn({ err: error }, "database connection lost"));
    return pool;
  });
  opening.catch(() => undefined);
  let users = 0;
  let retired = false;

  const end = async () => {
    // Where it could not be opened there is nothing to end.
    const pool = await opening.catch(() => undefined);
    await pool?.end();
  };
  const endUnused = () => {
    if (retired && users === 0)
      void end().catch((error: unknown) => options.log.warn({ err: error }, "pool not ended"));
  };

  return {
    async use(work) {
      users++;
      try {
        return await (await opening).connect(work);
      } finally {
        users--;
        endUnused();
      }
    },
    retire() {
      retired = true;
      endUnused();
    },
    end,
  };
};
