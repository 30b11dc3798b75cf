import { sql } from "slonik";
import { z } from "zod";
import { type Tx, transact } from "../db/transact.ts";
import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import type { Call } from "../rpc/call.ts";
import { checkTenant, ownTenant } from "../rpc/caller.ts";
import type { Handlers } from "../rpc/methods.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import { type Client, readClient } from "./clients.ts";
import type { AuthParts } from "./parts.ts";
import {
  type RefreshSubject,
  type RefreshToken,
  isGenuine,
  newestRefreshToken,
  parseRefreshToken,
  sameRefreshToken,
} from "./refresh-tokens.ts";
import { type OpenedSession, endSession } from "./sessions.ts";

const sessionRow = z.object({
  session_id: z.string(),
  user_id: z.string(),
  tenant_id: z.string(),
  refresh_token_hash_text: z.string(),
  refresh_seed: z.instanceof(Buffer).nullable(),
  generation: z.number(),
  refreshed_utc: z.number().nullable(),
  expiry_utc: z.number(),
  live: z.boolean(),
  now_utc: z.number(),
});
type SessionRow = z.output<typeof sessionRow>;

/** @param own the tenant that the caller is held to: another's session is not found. */
const lockSession = (own: string | null, sessionId: string) => sql.type(sessionRow)`
  SELECT x.session_id, x.user_id, x.tenant_id, x.refresh_token_hash_text, x.refresh_seed, x.generation,
    x.refreshed_utc, x.expiry_utc, x.revoked_utc IS NULL AND x.expiry_utc > now() AS live, now() AS now_utc
  FROM refresh_sessions x
  WHERE (${own}::uuid IS NULL OR x.tenant_id = ${own}::uuid) AND x.session_id = ${sessionId}::uuid
  FOR NO KEY UPDATE`;

const standingRow = z.object({ may_refresh: z.boolean() });
const rotatedRow = z.object({ expiry_utc: z.number() });

const selectMayRefresh = (tenantId: string, userId: string) => sql.prepared("select-may-refresh", standingRow)`
  SELECT u.user_state_code = 'active' AND t.tenant_state_code = 'active' AS may_refresh
  FROM users u JOIN tenants t ON t.tenant_id = u.tenant_id
  WHERE u.tenant_id = ${tenantId}::uuid AND u.user_id = ${userId}::uuid`;

/**
 * Looks at user and tenant in the statement that writes: no row is one of them being inactive. The rotation's time is that
 * of this statement: now() is from before the wait for the session's lock, which would be taken from the grace.
 */
const updateGeneration = (
  { tenant_id: tenantId, session_id: sessionId }: SessionRow,
  next: { readonly generation: number; readonly tokenHash: string; readonly idleTtlMs: number },
  client: Client,
) => sql.prepared("update-generation", rotatedRow)`
  UPDATE refresh_sessions x SET generation = ${next.generation}, refresh_token_hash_text = ${next.tokenHash},
    refreshed_utc = statement_timestamp(), client_user_agent_text = coalesce(${client.userAgent}, x.client_user_agent_text),
    client_ip_text = coalesce(${client.ip}, x.client_ip_text),
    expiry_utc = least(now() + ${next.idleTtlMs}::float8 * interval '1 millisecond', x.hard_expiry_utc)
  FROM users u JOIN tenants t ON t.tenant_id = u.tenant_id
  WHERE x.tenant_id = ${tenantId}::uuid AND x.session_id = ${sessionId}::uuid
    AND u.tenant_id = x.tenant_id AND u.user_id = x.user_id
    AND u.user_state_code = 'active' AND t.tenant_state_code = 'active'
  RETURNING x.expiry_utc`;

/** A session whose row is locked, and whose token is genuine. */
interface ProvenSession {
  readonly row: SessionRow;
  readonly subject: RefreshSubject;
}

const proveSession = async (
  { macs }: AuthParts,
  tx: Tx,
  call: Call,
  token: RefreshToken,
): Promise<ProvenSession | undefined> => {
  const row = await tx.maybeOne(lockSession(ownTenant(call), token.sessionId));
  if (!row?.refresh_seed) return undefined;
  const subject = { sessionId: row.session_id, seed: row.refresh_seed };
  if (!isGenuine(macs, subject, token)) return undefined;
  checkTenant(call.caller, call.actor, row.tenant_id);
  return { row, subject };
};

/** What a use of a genuine token of a live session is. */
type TokenUse = "invalid" | "rotate" | "repeat" | "reuse";

/**
 * @param row the session's generation, and when it was made.
 * @param generation the shown token's.
 * @param arrivalMs when it was shown.
 * @param graceMs for how long the answer of a rotation may be asked for again.
 */
export const tokenUse = (
  row: Pick<SessionRow, "generation" | "refreshed_utc">,
  generation: number,
  arrivalMs: number,
  graceMs: number,
): TokenUse => {
  if (generation > row.generation) return "invalid";
  if (generation === row.generation) return "rotate";
  const isRecent = row.refreshed_utc !== null && arrivalMs - row.refreshed_utc < graceMs;
  return generation === row.generation - 1 && isRecent ? "repeat" : "reuse";
};

const named = ({ row }: ProvenSession) => ({
  tenantId: row.tenant_id,
  userId: row.user_id,
  sessionId: row.session_id,
});

const opened = (proven: ProvenSession, refreshToken: string, refreshExpiryMs: number): OpenedSession => ({
  ...named(proven),
  refreshToken,
  refreshExpiryMs,
  nowMs: proven.row.now_utc,
});

const rotate = async ({ macs, config }: AuthParts, tx: Tx, proven: ProvenSession, client: Client) => {
  const generation = proven.row.generation + 1;
  // Under the newest pepper, whichever the former token was made under: sessions leave an old pepper as they are used.
  const refreshToken = newestRefreshToken(macs, proven.subject, generation);
  const tokenHash = macs.tag("refresh-token", refreshToken);
  const { idleTtlMs } = config.sessions;
  const rotated = await tx.maybeOne(updateGeneration(proven.row, { generation, tokenHash, idleTtlMs }, client));
  return rotated ? opened(proven, refreshToken, rotated.expiry_utc) : refusal("SESSION_INVALID");
};

/** The answer of the last rotation again: the row's hash says by its version which pepper made that token. */
const repeat = ({ macs }: AuthParts, proven: ProvenSession) => {
  const { row, subject } = proven;
  const refreshToken = sameRefreshToken(macs, row.refresh_token_hash_text, subject, row.generation);
  return refreshToken === undefined ? refusal("SESSION_INVALID") : opened(proven, refreshToken, row.expiry_utc);
};

interface Use {
  readonly token: RefreshToken;
  readonly client: Client;
  /** By the monotonic clock. */
  readonly arrivedAt: number;
}

const refresh = async (parts: AuthParts, tx: Tx, call: Call, shown: Use): Promise<OpenedSession | Refusal> => {
  // now() is when the transaction began: what the call waited for us before is not held against the client.
  const waitedMs = performance.now() - shown.arrivedAt;
  const proven = await proveSession(parts, tx, call, shown.token);
  if (!proven?.row.live) return refusal("SESSION_INVALID");
  const { row } = proven;
  const use = tokenUse(row, shown.token.generation, row.now_utc - waitedMs, parts.config.sessions.refreshGraceMs);
  if (use === "invalid") return refusal("SESSION_INVALID");
  if (use === "rotate") return rotate(parts, tx, proven, shown.client);
  const standing = await tx.maybeOne(selectMayRefresh(row.tenant_id, row.user_id));
  if (!standing?.may_refresh) return refusal("SESSION_INVALID");
  if (use === "repeat") return repeat(parts, proven);
  await endSession(tx, call, named(proven), "reused");
  return refusal("SESSION_REUSED");
};

type Refresh = () => Promise<OpenedSession>;

/**
 * Uses of one token at once are one: they would all get the token of its one rotation, and until then each would hold a
 * connection that others need. Who asks after a failure tries himself: it may be that of the first caller alone.
 */
const shareRefreshes = () => {
  const underWay = new Map<string, Promise<OpenedSession>>();
  return (key: string, run: Refresh): Promise<OpenedSession> => {
    const first = underWay.get(key);
    if (first) return first.catch(run);
    const refreshing = run().finally(() => underWay.delete(key));
    underWay.set(key, refreshing);
    return refreshing;
  };
};

export const refreshHandlers = (parts: AuthParts) => {
  const share = shareRefreshes();
  return {
    async refreshSession(request, call) {
      const arrivedAt = performance.now();
      const client = readClient(request.client);
      const token = parseRefreshToken(request.refreshToken);
      if (!token) throw refusal("SESSION_INVALID");
      // What checkTenant depends on stands in the key: nobody gets the answer of a caller who may see more.
      const session = await share(`${call.caller.tenantId} ${call.actor?.tenantId} ${request.refreshToken}`, () =>
        transact(parts.db, call, (tx) => refresh(parts, tx, call, { token, client, arrivedAt })),
      );
      return { tokens: await parts.sessions.tokens(session) };
    },

    async logout({ refreshToken }, call) {
      const token = parseRefreshToken(refreshToken);
      // A token of no session needs no logout: the client has what it asked for (RFC 7009, section 2.2).
      if (!token) return {};
      await transact(parts.db, call, async (tx) => {
        // Any generation will do: who holds a genuine token may end the session, however late it asks.
        const proven = await proveSession(parts, tx, call, token);
        if (proven?.row.live) await endSession(tx, call, named(proven), "logged_out");
      });
      return {};
    },
  } satisfies Partial<Handlers<typeof AuthService>>;
};
