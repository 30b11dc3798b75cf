import { timingSafeEqual } from "node:crypto";
import { sql } from "slonik";
import { z } from "zod";
import type { Database } from "../db/pool.ts";
import { read } from "../db/transact.ts";
import type { Macs } from "../macs.ts";
import { detached } from "../rpc/call.ts";
import { credentialId } from "./credentials.ts";
import { intersection } from "./permission-sets.ts";

// What another replica revokes takes hold here within this time.
const MEMORY_MS = 1_000;
const MEMORY_ENTRIES = 100_000;

const tokenRow = z.object({
  svc_session_id: z.string(),
  token_hash_text: z.string(),
  perm_keys: z.array(z.string()),
  expiry_utc: z.number(),
  remaining_ms: z.number(),
  svc_id: z.string(),
  svc_key: z.string(),
  tenant_id: z.string().nullable(),
  tenant_state_code: z.string().nullable(),
  service_perm_keys: z.array(z.string()),
});
type TokenRow = z.output<typeof tokenRow>;

const selectToken = (sessionId: string) => sql.prepared("select-service-token", tokenRow)`
  SELECT x.svc_session_id, x.token_hash_text, x.perm_keys, x.expiry_utc,
    (extract(epoch FROM x.expiry_utc - now()) * 1000)::float8 AS remaining_ms,
    s.svc_id, s.svc_key, s.tenant_id, t.tenant_state_code,
    ARRAY(SELECT p.perm_key FROM service_permissions p WHERE p.svc_id = s.svc_id) AS service_perm_keys
  FROM service_sessions x
  JOIN services s ON s.svc_id = x.svc_id AND s.svc_state_code = 'active'
  LEFT JOIN tenants t ON t.tenant_id = s.tenant_id
  LEFT JOIN service_secrets y ON y.secret_id = x.secret_id
  WHERE x.svc_session_id = ${sessionId}::uuid AND x.revoked_utc IS NULL AND x.expiry_utc > now()
    AND y.sessions_ended_utc IS NULL
    AND (s.sessions_ended_utc IS NULL OR x.created_utc > s.sessions_ended_utc)`;

/** A service token that is good now. */
export interface ServiceToken {
  readonly sessionId: string;
  readonly serviceId: string;
  readonly key: string;
  readonly tenantId: string | undefined;
  /** The service's tenant is suspended: proven, and refused all the same. */
  readonly suspended: boolean;
  /** What the token's own set and its service's present set both cover. */
  readonly permissions: readonly string[];
  readonly expireTimeMs: number;
}

export interface ServiceTokens {
  /**
   * The token's service, or undefined for a token that is malformed, unknown, expired, revoked or of a disabled service;
   * at once where no query is needed.
   */
  verify(token: string): ServiceToken | undefined | Promise<ServiceToken | undefined>;
  /** Forgets what was read before now. Whoever ends a session or takes a right calls it once that is committed. */
  forget(): void;
}

/**
 * A token that was found to be a session's, with what it stands for. The next one that is shown is written into `other`,
 * to be compared with `bytes` without a new buffer.
 */
interface Proven {
  readonly bytes: Buffer;
  readonly other: Buffer;
  readonly token: ServiceToken;
}

/** What one session's query answered. */
interface Remembered {
  readonly row: Promise<TokenRow | undefined>;
  proven: Proven | undefined;
  /** By the monotonic clock: one second after the query was sent, or the token's own end; without end until it is sent. */
  goodUntil: number;
}

const serviceToken = (row: TokenRow): ServiceToken => ({
  sessionId: row.svc_session_id,
  serviceId: row.svc_id,
  key: row.svc_key,
  tenantId: row.tenant_id ?? undefined,
  suspended: row.tenant_state_code === "suspended",
  permissions: intersection(row.perm_keys, row.service_perm_keys),
  expireTimeMs: row.expiry_utc,
});

// Where the session's id stands in a token, `skt_<session id>_…`.
const ID_START = 4;
const ID_END = ID_START + 36;

const provenBy = (token: string, row: TokenRow): Proven => {
  const bytes = Buffer.from(token);
  return { bytes, other: Buffer.alloc(bytes.length), token: serviceToken(row) };
};

const isSame = ({ bytes, other }: Proven, token: string) => {
  if (token.length !== bytes.length) return false;
  // A letter beyond ASCII may not fit, and would leave what was compared before.
  return other.write(token) === bytes.length && timingSafeEqual(bytes, other);
};

/**
 * Verifies service tokens with one query, remembered for a second from its sending.
 *
 * Calls of the same session share a query under way. A revocation here swaps the whole memory, so that what was read
 * before it, answered or not, serves nobody who asks later.
 */
export const createServiceTokens = (db: Database, macs: Macs): ServiceTokens => {
  // By session: a digest of each call's token, to find it by, took longer than comparing it.
  let memory = new Map<string, Remembered>();

  const query = (sessionId: string, entry: Pick<Remembered, "goodUntil">) =>
    // Not under the first asker's deadline: others share the answer, and its end must not be theirs.
    read(db, detached(), async (connection) => {
      const sentAt = performance.now();
      entry.goodUntil = sentAt + MEMORY_MS;
      const row = await connection.maybeOne(selectToken(sessionId));
      if (row) entry.goodUntil = sentAt + Math.min(MEMORY_MS, row.remaining_ms);
      return row ?? undefined;
    });

  // Entries stand in the order of their sending, so the stale ones are in front.
  const dropStale = (now: number) => {
    for (const [key, { goodUntil }] of memory) {
      if (goodUntil > now && memory.size < MEMORY_ENTRIES) return;
      memory.delete(key);
    }
  };

  const ask = (sessionId: string, now: number): Remembered => {
    const home = memory;
    home.delete(sessionId);
    dropStale(now);
    // Made before its query, which says in it when it was sent.
    const state = { proven: undefined, goodUntil: Infinity };
    const entry: Remembered = Object.assign(state, { row: query(sessionId, state) });
    home.set(sessionId, entry);
    const forgetEntry = () => {
      if (home.get(sessionId) === entry) home.delete(sessionId);
    };
    // Only good sessions are remembered: guesses must not fill the memory.
    entry.row.then((row) => {
      if (!row) forgetEntry();
    }, forgetEntry);
    return entry;
  };

  const prove = async (token: string, sessionId: string) => {
    const now = performance.now();
    const known = memory.get(sessionId);
    const entry = known && known.goodUntil > now ? known : ask(sessionId, now);
    const row = await entry.row;
    if (!row || !macs.matches("credential", token, row.token_hash_text)) return undefined;
    entry.proven ??= provenBy(token, row);
    return entry.proven.token;
  };

  return {
    verify(token) {
      // Of no other form can a token be good, and a long one would be read for nothing.
      if (!token.startsWith("skt_")) return undefined;
      const known = memory.get(token.slice(ID_START, ID_END));
      if (known?.proven && known.goodUntil > performance.now() && isSame(known.proven, token)) {
        return known.proven.token;
      }
      const sessionId = credentialId("skt", token);
      return sessionId === undefined ? undefined : prove(token, sessionId);
    },
    forget() {
      memory = new Map();
    },
  };
};
