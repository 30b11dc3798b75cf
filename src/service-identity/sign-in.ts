import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { read, transact } from "../db/transact.ts";
import type { ServiceIdentityService } from "../gen/service_identity/v1/service_identity_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { refusal } from "../rpc/refusal.ts";
import { credentialId, makeCredential } from "./credentials.ts";
import { escalation } from "./escalation.ts";
import type { ServiceIdentityParts } from "./parts.ts";
import { intersection } from "./permission-sets.ts";
import { secretIdRow } from "./rows.ts";

const expiryRow = z.object({ expiry_utc: z.number() });

const credentialRow = z.object({
  secret_hash_text: z.string(),
  svc_key: z.string(),
  svc_state_code: z.enum(["active", "disabled"]),
  tenant_state_code: z.string().nullable(),
  perm_keys: z.array(z.string()),
  use_is_stale: z.boolean(),
});

const selectCredential = (secretId: string) => sql.prepared("select-credential", credentialRow)`
  SELECT x.secret_hash_text, s.svc_key, s.svc_state_code, t.tenant_state_code,
    ARRAY(SELECT p.perm_key FROM service_permissions p WHERE p.svc_id = s.svc_id ORDER BY p.perm_key COLLATE "C") AS perm_keys,
    coalesce(x.last_used_utc < now() - interval '1 minute', true) AS use_is_stale
  FROM service_secrets x
  JOIN services s ON s.svc_id = x.svc_id
  LEFT JOIN tenants t ON t.tenant_id = s.tenant_id
  WHERE x.secret_id = ${secretId}::uuid AND (x.revoked_utc IS NULL OR x.revoked_utc > now())`;

/** For who notes the use too: two that came to share the secret's lock would each wait for the other to let go of it. */
const lockCredential = (secretId: string) => sql.prepared("lock-credential", secretIdRow)`
  SELECT x.secret_id
  FROM services s
  JOIN service_secrets x ON x.svc_id = s.svc_id
  WHERE x.secret_id = ${secretId}::uuid
  FOR SHARE OF s FOR NO KEY UPDATE OF x`;

const updateLastUsed = (secretId: string) => sql.prepared("update-secret-used", secretIdRow)`
  UPDATE service_secrets SET last_used_utc = clock_timestamp()
  WHERE secret_id = ${secretId}::uuid AND coalesce(last_used_utc < now() - interval '1 minute', true)
  RETURNING secret_id`;

interface NewSession {
  readonly sessionId: string;
  readonly secretId: string;
  readonly tokenHash: string;
  readonly permissions: readonly string[];
  readonly ttlMs: number;
}

/**
 * Looks again while it locks: a service disabled or a secret revoked meanwhile makes no session, and who disables or
 * revokes later waits for this one and ends it. By the clock, since now() is from before the wait. Service before secret,
 * the order in which those who revoke lock.
 */
const insertSession = (session: NewSession) => sql.prepared("insert-service-session", expiryRow)`
  INSERT INTO service_sessions (svc_session_id, svc_id, secret_id, token_hash_text, perm_keys, created_utc, expiry_utc)
  SELECT ${session.sessionId}::uuid, s.svc_id, x.secret_id, ${session.tokenHash}, ${sql.array(session.permissions, "text")},
    clock_timestamp(), clock_timestamp() + ${session.ttlMs}::float8 * interval '1 millisecond'
  FROM services s
  JOIN service_secrets x ON x.svc_id = s.svc_id
  WHERE x.secret_id = ${session.secretId}::uuid AND s.svc_state_code = 'active'
    AND (x.revoked_utc IS NULL OR x.revoked_utc > clock_timestamp())
  FOR SHARE OF s, x
  RETURNING expiry_utc`;

/** @param defaultTtlMs the life of a token whose caller names none. */
export const signInHandlers = ({ db, macs }: ServiceIdentityParts, defaultTtlMs: number) =>
  ({
    async authenticateService({ key, secret, ttl, permissions }, call) {
      const secretId = credentialId("sks", secret);
      const found = secretId && (await read(db, call, (connection) => connection.maybeOne(selectCredential(secretId))));
      // One answer for all of these: a difference would tell which services exist.
      const proven =
        found &&
        macs.matches("credential", secret, found.secret_hash_text) &&
        found.svc_key === key &&
        found.svc_state_code === "active";
      if (!proven) throw refusal("SERVICE_CREDENTIALS_INVALID");
      if (found.tenant_state_code === "suspended") throw refusal("TENANT_SUSPENDED");
      const beyond = escalation(found.perm_keys, permissions);
      if (beyond) throw beyond;

      const sessionId = uuidv7();
      const serviceToken = makeCredential("skt", sessionId);
      // One that is not narrowed follows its service, whose present permissions bound it anyway.
      const own = permissions.length > 0 ? permissions : ["*"];
      const { expiry_utc: expiry } = await transact(db, call, async (tx) => {
        const session = {
          sessionId,
          secretId,
          tokenHash: macs.tag("credential", serviceToken),
          permissions: own,
          ttlMs: ttl ? Math.max(1, durationMs(ttl)) : defaultTtlMs,
        };
        if (found.use_is_stale) await tx.any(lockCredential(secretId));
        const opened = await tx.maybeOne(insertSession(session));
        if (!opened) return refusal("SERVICE_CREDENTIALS_INVALID");
        if (found.use_is_stale) await tx.any(updateLastUsed(secretId));
        return opened;
      });
      return { serviceToken, expireTime: timestampFromMs(expiry), permissions: intersection(own, found.perm_keys) };
    },
  }) satisfies Partial<Handlers<typeof ServiceIdentityService>>;
