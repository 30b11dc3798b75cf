import type { Config } from "../config.ts";
import type { Database } from "../db/pool.ts";
import type { Macs } from "../macs.ts";
import type { Waiting } from "../rpc/call.ts";
import type { Client } from "./clients.ts";

/** A try at something that may be guessed or flooded. */
export interface Try {
  readonly act: "login" | "code-request" | "code";
  readonly tenantId: string;
  /** The normalised contact that was named; undefined where the request names none that is known. */
  readonly identifier: string | undefined;
  readonly client: Client;
  /** The identifier's user logged in from the client's network lately. */
  readonly networkIsKnown: boolean;
}

export interface Throttles {
  /**
   * Counts a try before its work, apart from the work's transaction. Who succeeds gives it back by what this answers with.
   * @throws RATE_LIMITED with RetryInfo; such a try counts no further.
   */
  count(waiting: Waiting, attempt: Try): Promise<() => Promise<void>>;
}

export interface ThrottlesOptions {
  readonly db: Database;
  readonly macs: Macs;
  readonly config: Config["throttles"];
}

export const createThrottles = (_options: ThrottlesOptions): Throttles => ({
  count: () => Promise.resolve(() => Promise.resolve()),
});
