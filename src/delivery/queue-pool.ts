import { Pool, type PoolClient } from "pg";
import type { Config } from "../config.ts";
import { IsoClient, endpointOf } from "../db/client-config.ts";
import { answerMs, connectionUri, verifiedTls } from "../db/connections.ts";
import { FAREWELL_MS } from "../db/driver.ts";
import type { Log } from "../log.ts";
import { endedWithin } from "../timers.ts";

/** What a connection leads to may answer, and be the primary no more: none is used for longer than this. */
const LIFETIME_S = 30;

type Taken = (
  error: Error | undefined,
  client: PoolClient | undefined,
  release: (error?: Error | boolean) => void,
) => void;

/**
 * Graphile-worker gives its listening connection back twice where it ends while its LISTEN hangs, and hears of no error of
 * the second time: that would end the process.
 */
class OncePool extends Pool {
  override connect(): Promise<PoolClient>;
  override connect(callback: Taken): void;
  override connect(callback?: Taken): Promise<PoolClient> | undefined {
    if (!callback) return super.connect();
    super.connect((error, client, release) => {
      let released = false;
      callback(error, client, (fault) => {
        if (!released) release(fault);
        released = true;
      });
    });
    return undefined;
  }
}

interface QueuePoolOptions {
  readonly databaseUrl: string;
  readonly settings: Config["database"];
  readonly log: Log;
  readonly size: number;
}

/** The queue's own pool: graphile-worker speaks node-postgres, and what it holds must not be what calls wait for. */
export const openQueuePool = ({ databaseUrl, settings, log, size }: QueuePoolOptions): Pool => {
  const { statementTimeoutMs, pgBouncer } = settings;
  const pool = new OncePool({
    ...endpointOf(connectionUri(databaseUrl, settings), verifiedTls(settings)),
    Client: IsoClient,
    application_name: "auth-service delivery",
    max: size,
    connectionTimeoutMillis: settings.connectTimeoutMs,
    query_timeout: answerMs(settings),
    // For what node-postgres does in this mode alone: it ends a connection whose statement had no answer in time. Graphile-worker
    // gives that back as if it were sound, and each later statement would wait for the lost answer.
    pipeline: true,
    ...(!pgBouncer && statementTimeoutMs !== undefined && { statement_timeout: statementTimeoutMs }),
    maxLifetimeSeconds: LIFETIME_S,
  });
  const lost = (error: Error) => log.debug({ err: error }, "the queue's connection was lost");
  // Of a connection in use, only it itself tells; without a listener its error would end the process.
  pool.on("error", lost).on("connect", (client) => void client.on("error", lost));
  return pool;
};

/** Ends the pool; a connection that hangs in use is left to the process's end. */
export const endQueuePool = async (pool: Pool, log: Log): Promise<void> => {
  const ended = pool.end().catch((error: unknown) => log.debug({ err: error }, "the queue's pool was not ended"));
  await endedWithin(FAREWELL_MS, ended);
};
