import type { Database } from "../db/pool.ts";
import type { Macs } from "../macs.ts";
import type { ServiceTokens } from "./service-tokens.ts";

/** What Service Identity's handlers are made of; `implementations.ts` puts it together. */
export interface ServiceIdentityParts {
  readonly db: Database;
  readonly macs: Macs;
  readonly tokens: ServiceTokens;
}
