import type { Config } from "../config.ts";
import type { Database } from "../db/pool.ts";
import type { Macs } from "../macs.ts";
import type { AccessTokens } from "./access-tokens.ts";
import type { Google } from "./google.ts";
import type { Channel } from "./otp-codes.ts";
import type { Passwords } from "./passwords.ts";
import type { Sessions } from "./sessions.ts";
import type { SigningKeys } from "./signing-keys.ts";
import type { Throttles } from "./throttles.ts";

/** What Auth's handlers are made of; `implementations.ts` puts it together. */
export interface AuthParts {
  readonly db: Database;
  readonly config: Config;
  readonly macs: Macs;
  readonly keys: SigningKeys;
  readonly accessTokens: AccessTokens;
  readonly sessions: Sessions;
  readonly passwords: Passwords;
  readonly throttles: Throttles;
  readonly google: Google;
  readonly channels: ReadonlySet<Channel>;
}
