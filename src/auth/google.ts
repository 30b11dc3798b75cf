import type { Config } from "../config.ts";
import type { Waiting } from "../rpc/call.ts";

/** What Google says of a person. */
export interface GoogleAccount {
  readonly subject: string;
  readonly email: string | undefined;
  /** Google answers for the e-mail: it is verified, and a gmail.com address or one of a hosted domain. */
  readonly authoritative: boolean;
  readonly name: string | undefined;
}

export interface Google {
  /** @throws ID_TOKEN_INVALID, IDENTITY_PROVIDER_UNAVAILABLE, GOOGLE_NOT_CONFIGURED */
  verify(waiting: Waiting, idToken: string, nonce: string | undefined): Promise<GoogleAccount>;
}

export const createGoogle = (_config: Config["google"]): Google => ({
  verify: () => Promise.reject(new Error("not built")),
});
