import { hash, randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type CryptoKey, SignJWT, compactVerify, decodeJwt, decodeProtectedHeader } from "jose";
import { sql } from "slonik";
import { z } from "zod";
import type { Config } from "../config.ts";
import { createCoalescer } from "../db/coalesce.ts";
import type { Database } from "../db/pool.ts";
import { read } from "../db/transact.ts";
import { type AuthService, TokenReason } from "../gen/auth/v1/auth_pb.ts";
import { type Waiting, detached } from "../rpc/call.ts";
import { checkTenant } from "../rpc/caller.ts";
import type { Handlers } from "../rpc/methods.ts";
import type { AuthParts } from "./parts.ts";
import { ALGORITHM, type SigningKeys } from "./signing-keys.ts";

/** Whom an access token speaks for. */
interface AccessClaims {
  readonly userId: string;
  readonly tenantId: string;
  readonly sessionId: string;
  readonly expireTimeMs: number;
}

/** The reasons stand in the order in which they are looked for. */
type VerifiedAccess =
  | { readonly reason: "MALFORMED" | "SIGNATURE" }
  | ({ readonly reason: "EXPIRED" | "USER_INACTIVE" | "SESSION_ENDED" | "TENANT_SUSPENDED" | "OK" } & AccessClaims);

export interface AccessTokens {
  /** @param nowMs the database's clock, from which it lives. */
  sign(subject: Omit<AccessClaims, "expireTimeMs">, nowMs: number): Promise<{ token: string; expireTimeMs: number }>;
  /** By its signature, and by what session, user and tenant are now. */
  verify(waiting: Waiting, token: string): Promise<VerifiedAccess>;
}

interface AccessTokensOptions {
  readonly db: Database;
  readonly keys: SigningKeys;
  readonly config: Config["accessTokens"];
}

// RFC 9068, section 2.1: no other JWT that the same keys might sign is taken for one.
const TYPE = "at+jwt";

const standingRow = z.object({
  user_id: z.string().nullable(),
  tenant_id: z.string().nullable(),
  session_live: z.boolean(),
  user_active: z.boolean(),
  tenant_active: z.boolean(),
  now_utc: z.number(),
});
type StandingRow = z.output<typeof standingRow>;

/** What became of sessions, their users and tenants, in the order of the ids. */
const selectStandings = (sessionIds: readonly string[]) => sql.prepared("select-standings", standingRow)`
  SELECT x.user_id, x.tenant_id,
    coalesce(x.revoked_utc IS NULL AND x.expiry_utc > now(), false) AS session_live,
    coalesce(u.user_state_code = 'active', false) AS user_active,
    coalesce(t.tenant_state_code = 'active', false) AS tenant_active,
    now() AS now_utc
  FROM unnest(${sql.array(sessionIds, "uuid")}) WITH ORDINALITY AS asked (session_id, position)
  LEFT JOIN refresh_sessions x ON x.session_id = asked.session_id
  LEFT JOIN users u ON u.user_id = x.user_id
  LEFT JOIN tenants t ON t.tenant_id = x.tenant_id
  ORDER BY asked.position`;

const uuid = z.string().regex(/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
const header = z.object({ typ: z.literal(TYPE), alg: z.string(), kid: z.string().optional() });

/** The last second that a Timestamp can hold, that of 9999-12-31. */
const EXPIRY_MAX = 253_402_300_799;

const claimsOf = ({ issuer, audience }: AccessTokensOptions["config"]) =>
  z
    .object({
      iss: z.literal(issuer),
      aud: z.literal(audience),
      sub: uuid,
      tid: uuid,
      sid: uuid,
      jti: z.string(),
      iat: z.int(),
      exp: z.int().min(0).max(EXPIRY_MAX),
    })
    .transform(({ sub, tid, sid, exp }): AccessClaims => ({
      userId: sub,
      tenantId: tid,
      sessionId: sid,
      expireTimeMs: exp * 1_000,
    }));

const parse = (token: string, claims: ReturnType<typeof claimsOf>) => {
  try {
    return { header: header.parse(decodeProtectedHeader(token)), claims: claims.parse(decodeJwt(token)) };
  } catch {
    // Whatever jose or zod has against it, it is no access token of ours by its form.
    return undefined;
  }
};

// Base64 has several spellings of the same bytes, and a token shall have one.
const isCanonical = (token: string): boolean => {
  const signature = token.slice(token.lastIndexOf(".") + 1);
  return Buffer.from(signature, "base64url").toString("base64url") === signature;
};

// Verifying an Ed25519 signature is most of what a check costs, and a token is shown many times in its short life.
const SIGNED_MAX = 10_000;

/** Remembers which tokens a key has signed, which never changes: not what became of session, user or tenant. */
const createSignatures = (keys: SigningKeys) => {
  // By the key itself, so that what a key had signed is forgotten when its file no longer has it.
  const signedBy = new WeakMap<CryptoKey, Set<string>>();

  const verified = async (token: string, key: CryptoKey): Promise<boolean> => {
    const signed = signedBy.get(key) ?? new Set();
    const digest = hash("sha256", token, "base64");
    if (signed.has(digest)) return true;
    const isGood = await compactVerify(token, key, { algorithms: [ALGORITHM] }).then(
      () => true,
      () => false,
    );
    if (!isGood) return false;
    if (signed.size >= SIGNED_MAX) signed.clear();
    signedBy.set(key, signed.add(digest));
    return true;
  };

  return async (token: string, { alg, kid }: z.output<typeof header>): Promise<boolean> => {
    const key = alg === ALGORITHM && kid !== undefined && isCanonical(token) ? await keys.verifying(kid) : undefined;
    return key !== undefined && verified(token, key);
  };
};

const reasonOf = (claims: AccessClaims, standing: StandingRow) => {
  if (claims.expireTimeMs <= standing.now_utc) return "EXPIRED";
  const isOfSession = standing.user_id === claims.userId && standing.tenant_id === claims.tenantId;
  if (!isOfSession) return "SESSION_ENDED";
  // Before the session: whoever deactivates or erases a user ends the sessions too.
  if (!standing.user_active) return "USER_INACTIVE";
  if (!standing.session_live) return "SESSION_ENDED";
  return standing.tenant_active ? "OK" : "TENANT_SUSPENDED";
};

export const createAccessTokens = ({ db, keys, config }: AccessTokensOptions): AccessTokens => {
  const claimsSchema = claimsOf(config);
  const isSigned = createSignatures(keys);
  const standingOf = createCoalescer((sessionIds: readonly string[]) =>
    read(db, detached(), (connection) => connection.many(selectStandings(sessionIds))),
  );
  return {
    async sign({ userId, tenantId, sessionId }, nowMs) {
      const { kid, privateKey } = keys.signing();
      const issuedAt = Math.floor(nowMs / 1_000);
      const expiry = Math.floor((nowMs + config.ttlMs) / 1_000);
      const token = await new SignJWT({ tid: tenantId, sid: sessionId })
        .setProtectedHeader({ alg: ALGORITHM, typ: TYPE, kid })
        .setIssuer(config.issuer)
        .setAudience(config.audience)
        .setSubject(userId)
        .setJti(randomUUID())
        .setIssuedAt(issuedAt)
        .setExpirationTime(expiry)
        .sign(privateKey);
      return { token, expireTimeMs: expiry * 1_000 };
    },
    async verify(waiting, token) {
      const parsed = parse(token, claimsSchema);
      if (!parsed) return { reason: "MALFORMED" };
      if (!(await isSigned(token, parsed.header))) return { reason: "SIGNATURE" };
      const standing = await standingOf(waiting, parsed.claims.sessionId);
      return { reason: reasonOf(parsed.claims, standing), ...parsed.claims };
    },
  };
};

/** A token that this caller may not see: its session is unknown to it. */
const isForeign = (verified: VerifiedAccess, own: string | undefined): boolean =>
  own !== undefined && "tenantId" in verified && verified.tenantId !== own && verified.reason !== "EXPIRED";

export const accessTokenHandlers = ({ accessTokens }: Pick<AuthParts, "accessTokens">) =>
  ({
    async verifyAccessToken({ accessToken }, call) {
      const verified = await accessTokens.verify(call, accessToken);
      if (isForeign(verified, call.caller.tenantId)) return { active: false, reason: TokenReason.SESSION_ENDED };
      if (verified.reason !== "OK") return { active: false, reason: TokenReason[verified.reason] };
      checkTenant(call.caller, call.actor, verified.tenantId);
      return {
        active: true,
        userId: verified.userId,
        tenantId: verified.tenantId,
        sessionId: verified.sessionId,
        expireTime: timestampFromMs(verified.expireTimeMs),
        reason: TokenReason.OK,
      };
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
