import { randomBytes } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import type { Config } from "../config.ts";
import { BATCH } from "../db/batches.ts";
import type { Tx } from "../db/transact.ts";
import type { TokenPairSchema } from "../gen/auth/v1/auth_pb.ts";
import type { Macs } from "../macs.ts";
import type { Call } from "../rpc/call.ts";
import { refusal } from "../rpc/refusal.ts";
import type { AccessTokens } from "./access-tokens.ts";
import type { Client } from "./clients.ts";
import { networkTag } from "./login-networks.ts";
import { type RefreshSubject, newestRefreshToken } from "./refresh-tokens.ts";

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
  /**
   * Opens a session. The caller's transaction has locked the user's row by `lockUser`, and found it active.
   * @throws TENANT_SUSPENDED where that was answered since the tenant was looked at
   */
  open(tx: Tx, call: Call, signIn: SignIn): Promise<OpenedSession>;
  /** The tokens that the client gets; after the commit. */
  tokens(session: OpenedSession): Promise<MessageInitShape<typeof TokenPairSchema>>;
}

interface SessionsOptions {
  readonly macs: Macs;
  readonly accessTokens: AccessTokens;
  readonly config: Config["sessions"];
}

/** Which sessions of a user end, and why: the reason stands in the row. */
interface EndOfSessions {
  readonly tenantId: string;
  readonly userId: string;
  readonly exceptSessionId?: string | undefined;
  readonly reason: "deactivated" | "erased" | "password" | "revoked" | "contact_proven";
}

/** Why one session ended. */
type EndReason = "logged_out" | "revoked" | "reused";

const sessionIdRow = z.object({ session_id: z.string() });

const openedRow = z.object({
  user_id: z.string(),
  tenant_id: z.string(),
  expiry_utc: z.number(),
  now_utc: z.number(),
  ended_ids: z.array(z.string()),
});

interface NewSession {
  readonly sessionId: string;
  readonly seed: Buffer;
  readonly tokenHash: string;
  readonly networkHash: string | null;
}

// How many sessions beyond the bound one login ends, and how many that have expired it looks past to find them.
const END_MAX = 100;
const EXPIRED_MAX = 1_000;
const DAY_MS = 86_400_000;

/** How old a login may be before the next one from its network is written: a day, as long as that is far from forgotten. */
const networkStaleMs = ({ knownNetworkMs }: Config["sessions"]) => Math.min(DAY_MS, knownNetworkMs / 10);

/**
 * One round trip for all that a login writes: the session, its network at most once a day, and the end of the oldest
 * sessions beyond the bound. What another login has locked, that one ends. None where the tenant is suspended by now.
 */
const insertSession = (session: NewSession, { tenantId, userId, client }: SignIn, config: Config["sessions"]) =>
  sql.prepared("insert-session", openedRow)`
  WITH network AS (
    INSERT INTO login_networks (tenant_id, user_id, network_hash)
    SELECT ${tenantId}::uuid, ${userId}::uuid, ${session.networkHash}::text
    WHERE ${session.networkHash}::text IS NOT NULL AND NOT EXISTS (
      SELECT FROM login_networks n
      WHERE n.user_id = ${userId}::uuid AND n.network_hash = ${session.networkHash}::text
        AND n.last_login_utc > now() - ${networkStaleMs(config)}::float8 * interval '1 millisecond'
    )
    ON CONFLICT (user_id, network_hash) DO UPDATE SET last_login_utc = now()
  ), newest AS (
    SELECT x.session_id, x.expiry_utc FROM refresh_sessions x
    WHERE x.user_id = ${userId}::uuid AND x.revoked_utc IS NULL
    ORDER BY x.session_id DESC LIMIT ${config.perUserMax + EXPIRED_MAX}
  ), ended AS (
    UPDATE refresh_sessions SET revoked_utc = clock_timestamp(), end_reason_code = 'superseded'
    WHERE session_id = ANY (ARRAY(
      SELECT y.session_id FROM refresh_sessions y
      WHERE y.revoked_utc IS NULL AND y.session_id = ANY (ARRAY(
        SELECT n.session_id FROM newest n WHERE n.expiry_utc > now()
        ORDER BY n.session_id DESC OFFSET ${config.perUserMax - 1} LIMIT ${END_MAX}
      ))
      FOR NO KEY UPDATE SKIP LOCKED
    ))
    RETURNING session_id
  )
  INSERT INTO refresh_sessions (session_id, user_id, tenant_id, refresh_token_hash_text, client_user_agent_text,
    client_ip_text, refresh_seed, expiry_utc, hard_expiry_utc)
  SELECT ${session.sessionId}::uuid, ${userId}::uuid, t.tenant_id, ${session.tokenHash}, ${client.userAgent},
    ${client.ip}, ${sql.binary(session.seed)}, now() + ${config.idleTtlMs}::float8 * interval '1 millisecond',
    now() + ${config.maxTtlMs}::float8 * interval '1 millisecond'
  FROM tenants t WHERE t.tenant_id = ${tenantId}::uuid AND t.tenant_state_code = 'active'
  RETURNING user_id, tenant_id, expiry_utc, now() AS now_utc, ARRAY(SELECT e.session_id FROM ended e) AS ended_ids`;

const updateEnded = (sessionId: string, reason: EndReason) => sql.type(sessionIdRow)`
  UPDATE refresh_sessions SET revoked_utc = clock_timestamp(), end_reason_code = ${reason}
  WHERE session_id = ${sessionId}::uuid
  RETURNING session_id`;

const endedRow = z.object({ last_id: z.string().nullable(), seen: z.bigint(), ended: z.bigint() });

/**
 * As many as one statement ends in its time. Whether a session lives is decided once its row is locked: a refresh that came
 * before its end may just be moving it, and whoever passed over that row, as it was, would leave it alive.
 */
const updateSomeEnded = (
  { tenantId, userId, exceptSessionId, reason }: EndOfSessions,
  afterId: string | null,
) => sql.type(endedRow)`
  WITH unended AS (
    SELECT x.session_id, x.expiry_utc FROM refresh_sessions x
    WHERE x.tenant_id = ${tenantId}::uuid AND x.user_id = ${userId}::uuid AND x.revoked_utc IS NULL
      AND x.session_id IS DISTINCT FROM ${exceptSessionId ?? null}::uuid
      AND (${afterId}::uuid IS NULL OR x.session_id > ${afterId}::uuid)
    ORDER BY x.session_id
    LIMIT ${BATCH}
    FOR NO KEY UPDATE
  ), ended AS (
    UPDATE refresh_sessions SET revoked_utc = clock_timestamp(), end_reason_code = ${reason}
    WHERE session_id = ANY (ARRAY(SELECT u.session_id FROM unended u WHERE u.expiry_utc > now()))
    RETURNING session_id
  )
  SELECT (SELECT u.session_id FROM unended u ORDER BY u.session_id DESC LIMIT 1) AS last_id,
    (SELECT count(*) FROM unended) AS seen, (SELECT count(*) FROM ended) AS ended`;

/** Ends live sessions of a user whose row the caller has locked; answers how many there were. */
export const endSessions = async (tx: Tx, end: EndOfSessions): Promise<number> => {
  let count = 0;
  let last: z.output<typeof endedRow> | undefined;
  do {
    last = await tx.one(updateSomeEnded(end, last?.last_id ?? null));
    count += Number(last.ended);
  } while (last.seen === BigInt(BATCH));
  return count;
};

/** Ends a live session whose row the caller has locked, and records it. */
export const endSession = async (
  tx: Tx,
  call: Call,
  session: { readonly tenantId: string; readonly userId: string; readonly sessionId: string },
  reason: EndReason,
): Promise<void> => {
  await tx.one(updateEnded(session.sessionId, reason));
  await recordEvent(tx, call, {
    action: reason === "reused" ? "auth.session.reuse" : "auth.session.revoke",
    tenantId: session.tenantId,
    entityKind: "session",
    entityId: session.sessionId,
    payload: { user_id: session.userId },
  });
};

export const createSessions = ({ macs, accessTokens, config }: SessionsOptions): Sessions => ({
  async open(tx, call, signIn) {
    const { tenantId, client, method } = signIn;
    const subject: RefreshSubject = { sessionId: uuidv7(), seed: randomBytes(32) };
    const refreshToken = newestRefreshToken(macs, subject, 0);
    const session = {
      ...subject,
      tokenHash: macs.tag("refresh-token", refreshToken),
      networkHash: client.network === undefined ? null : networkTag(macs, tenantId, client.network),
    };
    const row = await tx.maybeOne(insertSession(session, signIn, config));
    // Thrown, for what else the sign-in has written to be undone.
    if (!row) throw refusal("TENANT_SUSPENDED", { tenant_id: tenantId });
    await recordEvent(tx, call, {
      action: "auth.session.create",
      tenantId,
      entityKind: "session",
      entityId: session.sessionId,
      payload: {
        method,
        user_id: row.user_id,
        ...(row.ended_ids.length > 0 && { ended_session_ids: row.ended_ids }),
      },
    });
    return {
      sessionId: session.sessionId,
      // As the database writes them: a request may name them in upper case, and the access token takes them over.
      userId: row.user_id,
      tenantId: row.tenant_id,
      refreshToken,
      refreshExpiryMs: row.expiry_utc,
      nowMs: row.now_utc,
    };
  },
  async tokens(session) {
    const { token, expireTimeMs } = await accessTokens.sign(session, session.nowMs);
    return {
      accessToken: token,
      accessExpireTime: timestampFromMs(expireTimeMs),
      refreshToken: session.refreshToken,
      refreshExpireTime: timestampFromMs(session.refreshExpiryMs),
      sessionId: session.sessionId,
    };
  },
});
