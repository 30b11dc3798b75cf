import type { AuditHead } from "../audit/head.ts";
import type { Passwords } from "../auth/passwords.ts";
import type { Config } from "../config.ts";
import type { Database } from "../db/pool.ts";
import type { Macs } from "../macs.ts";

/** What Org's handlers are made of; `implementations.ts` puts it together. */
export interface OrgParts {
  readonly db: Database;
  /** Of few connections that no call waits for. */
  readonly probe: Database;
  readonly config: Config;
  readonly macs: Macs;
  /** For the password of a user that accepting an invitation makes. */
  readonly passwords: Passwords;
  /** Wakes those who watch audit events. */
  readonly auditHead: AuditHead;
  /** Forgets which service tokens are good: a tenant's state decides over its services. */
  readonly forgetTokens: () => void;
}
