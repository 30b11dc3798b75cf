import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Config } from "../config.ts";
import type { Tx } from "../db/transact.ts";
import type { TokenPairSchema } from "../gen/auth/v1/auth_pb.ts";
import type { Macs } from "../macs.ts";
import type { Call } from "../rpc/call.ts";
import type { AccessTokens } from "./access-tokens.ts";
import type { Client } from "./clients.ts";

/** A proven sign-in. */
export interface SignIn {
  readonly tenantId: string;
  readonly userId: string;
  readonly client: Client;
  /** How it was proven, for the audit event. */
  readonly method: "password" | "google" | "code";
}

/** A session that stands once its transaction has committed. */
export interface OpenedSession {
  readonly sessionId: string;
  readonly userId: string;
  readonly tenantId: string;
  readonly refreshToken: string;
  readonly refreshExpiryMs: number;
  /** The database's clock when the tokens were made. */
  readonly nowMs: number;
}

export interface Sessions {
  /** Opens a session. The caller's transaction has locked the user's row, FOR SHARE at least, and found it active. */
  open(tx: Tx, call: Call, signIn: SignIn): Promise<OpenedSession>;
  /** The tokens that the client gets; after the commit. */
  tokens(session: OpenedSession): Promise<MessageInitShape<typeof TokenPairSchema>>;
}

export interface SessionsOptions {
  readonly macs: Macs;
  readonly accessTokens: AccessTokens;
  readonly config: Config["sessions"];
}

/** Which sessions of a user end, and why: the reason stands in the row. */
export interface EndOfSessions {
  readonly tenantId: string;
  readonly userId: string;
  readonly exceptSessionId?: string | undefined;
  readonly reason: "deactivated" | "erased" | "password" | "revoked" | "contact_proven";
}

/** Ends live sessions of a user whose row the caller has locked; answers how many there were. */
export const endSessions = (_tx: Tx, _end: EndOfSessions): Promise<number> => Promise.reject(new Error("not built"));

export const createSessions = (_options: SessionsOptions): Sessions => ({
  open: () => Promise.reject(new Error("not built")),
  tokens: () => Promise.reject(new Error("not built")),
});
