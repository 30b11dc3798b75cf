import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import {
  type ListServiceSessionsRequest,
  ListServiceSessionsRequestSchema,
  type RevokeServiceSessionRequest,
  type ServiceIdentityService,
} from "../gen/service_identity/v1/service_identity_pb.ts";
import type { Macs } from "../macs.ts";
import type { Call } from "../rpc/call.ts";
import { checkTenant, ownTenant } from "../rpc/caller.ts";
import type { Handlers } from "../rpc/methods.ts";
import { cutPage, microseconds, readPage } from "../rpc/page.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";
import { credentialId } from "./credentials.ts";
import { covers } from "./permission-sets.ts";
import type { ServiceIdentityParts } from "./parts.ts";
import { secretIdRow, svcIdRow } from "./rows.ts";
import { heldTo, serviceEvent, visibleService } from "./services.ts";

const sessionRow = z.object({
  svc_session_id: z.string(),
  svc_id: z.string(),
  created_utc: z.number(),
  expiry_utc: z.number(),
  revoked_utc: z.number().nullable(),
  expiry_us: z.bigint(),
});
type SessionRow = z.output<typeof sessionRow>;

const ownedSessionRow = z.object({
  svc_session_id: z.string(),
  token_hash_text: z.string(),
  svc_id: z.string(),
  tenant_id: z.string().nullable(),
});
const svcSessionIdRow = z.object({ svc_session_id: z.string() });

const liveKey = z.tuple([microseconds, z.guid()]);
type LiveKey = z.output<typeof liveKey>;

/** Latest end first, from an index that has only those not revoked: what has ended costs a page nothing. */
const selectLiveSessions = (serviceId: string, [afterUs, afterId]: LiveKey | [null, null], limit: number) =>
  sql.type(sessionRow)`
  SELECT x.svc_session_id, x.svc_id, x.created_utc, x.expiry_utc, x.revoked_utc,
    (extract(epoch FROM x.expiry_utc) * 1000000)::bigint AS expiry_us
  FROM service_sessions x
  JOIN services s ON s.svc_id = x.svc_id
  LEFT JOIN service_secrets y ON y.secret_id = x.secret_id
  WHERE x.svc_id = ${serviceId}::uuid AND x.revoked_utc IS NULL AND x.expiry_utc > now()
    AND y.sessions_ended_utc IS NULL
    AND (s.sessions_ended_utc IS NULL OR x.created_utc > s.sessions_ended_utc)
    AND (${afterId}::uuid IS NULL OR (x.expiry_utc, x.svc_session_id) <
      ('epoch'::timestamptz + ${afterUs}::bigint * interval '1 microsecond', ${afterId}::uuid))
  ORDER BY x.expiry_utc DESC, x.svc_session_id DESC
  LIMIT ${limit}`;

/** Newest first, since ids are by time. One that a mark has ended was revoked at that time. */
const selectSessions = (serviceId: string, afterId: string | null, limit: number) => sql.type(sessionRow)`
  SELECT x.svc_session_id, x.svc_id, x.created_utc, x.expiry_utc,
    coalesce(x.revoked_utc, least(
      CASE WHEN y.sessions_ended_utc < x.expiry_utc THEN y.sessions_ended_utc END,
      CASE WHEN s.sessions_ended_utc < x.expiry_utc AND x.created_utc <= s.sessions_ended_utc THEN s.sessions_ended_utc END
    )) AS revoked_utc,
    (extract(epoch FROM x.expiry_utc) * 1000000)::bigint AS expiry_us
  FROM service_sessions x
  JOIN services s ON s.svc_id = x.svc_id
  LEFT JOIN service_secrets y ON y.secret_id = x.secret_id
  WHERE x.svc_id = ${serviceId}::uuid AND (${afterId}::uuid IS NULL OR x.svc_session_id < ${afterId}::uuid)
  ORDER BY x.svc_session_id DESC
  LIMIT ${limit}`;

const selectOwnedSession = (sessionId: string, own: string | null) => sql.type(ownedSessionRow)`
  SELECT x.svc_session_id, x.token_hash_text, s.svc_id, s.tenant_id
  FROM service_sessions x
  JOIN services s ON s.svc_id = x.svc_id AND (${own}::uuid IS NULL OR s.tenant_id = ${own}::uuid)
  WHERE x.svc_session_id = ${sessionId}::uuid`;

/** Null where it has ended, be it by a mark alone. */
const revokeSession = (sessionId: string) => sql.type(svcSessionIdRow)`
  UPDATE service_sessions x SET revoked_utc = now()
  WHERE x.svc_session_id = ${sessionId}::uuid AND x.revoked_utc IS NULL AND x.expiry_utc > now()
    AND NOT EXISTS (SELECT 1 FROM services s WHERE s.svc_id = x.svc_id AND x.created_utc <= s.sessions_ended_utc)
    AND NOT EXISTS (SELECT 1 FROM service_secrets y WHERE y.secret_id = x.secret_id AND y.sessions_ended_utc IS NOT NULL)
  RETURNING x.svc_session_id`;

// How many rows one revocation writes; the mark ends the others, and the purge writes them later.
const REVOKE_ROWS = 1_000;

const markService = (serviceId: string) => sql.type(svcIdRow)`
  UPDATE services SET sessions_ended_utc = clock_timestamp() WHERE svc_id = ${serviceId}::uuid RETURNING svc_id`;

/**
 * One that a rotation has ended, or will end, has no mark: its sessions go on. It may have while this waited for it. Where
 * none does, there is nothing to end.
 */
const markSecret = (serviceId: string, secretId: string) => sql.type(secretIdRow)`
  UPDATE service_secrets x
  SET revoked_utc = least(revoked_utc, statement_timestamp()), sessions_ended_utc = clock_timestamp()
  WHERE x.svc_id = ${serviceId}::uuid AND x.secret_id = ${secretId}::uuid AND x.sessions_ended_utc IS NULL
    AND (x.revoked_utc IS NULL OR x.revoked_utc > statement_timestamp() OR EXISTS (
      SELECT FROM service_sessions y
      WHERE y.svc_id = x.svc_id AND y.secret_id = x.secret_id
        AND y.revoked_utc IS NULL AND y.expiry_utc > statement_timestamp()
    ))
  RETURNING x.secret_id`;

/** Those that a mark on their secret has ended keep its time. now() is from before the wait for the service's row. */
const revokeSomeSessions = (serviceId: string, secretId: string | null) => sql.type(svcSessionIdRow)`
  UPDATE service_sessions x SET revoked_utc =
    coalesce((SELECT z.sessions_ended_utc FROM service_secrets z WHERE z.secret_id = x.secret_id), statement_timestamp())
  WHERE x.svc_session_id = ANY (ARRAY(
    SELECT y.svc_session_id FROM service_sessions y
    WHERE y.svc_id = ${serviceId}::uuid AND (${secretId}::uuid IS NULL OR y.secret_id = ${secretId}::uuid)
      AND y.revoked_utc IS NULL AND y.expiry_utc > statement_timestamp()
    LIMIT ${REVOKE_ROWS}
  ))
  RETURNING x.svc_session_id`;

/** Ends every session of a service, whose row is locked, at a cost that does not grow with their number. */
export const endServiceSessions = async (tx: Tx, serviceId: string): Promise<void> => {
  await tx.one(markService(serviceId));
  await tx.any(revokeSomeSessions(serviceId, null));
};

/**
 * Ends a secret, and the sessions that it opened; the service's row is locked.
 * @returns whether there was anything to end.
 */
export const endSecret = async (tx: Tx, serviceId: string, secretId: string): Promise<boolean> => {
  const marked = await tx.maybeOne(markSecret(serviceId, secretId));
  await tx.any(revokeSomeSessions(serviceId, secretId));
  return marked !== null;
};

const sessionMessage = (row: SessionRow) => ({
  sessionId: row.svc_session_id,
  serviceId: row.svc_id,
  createTime: timestampFromMs(row.created_utc),
  expireTime: timestampFromMs(row.expiry_utc),
  ...(row.revoked_utc !== null && { revokeTime: timestampFromMs(row.revoked_utc) }),
});

/** The session that a request names: by its id, or by a token that must be the session's own. */
const namedSession = async (tx: Tx, call: Call, macs: Macs, selector: RevokeServiceSessionRequest["selector"]) => {
  const token = selector.case === "serviceToken" ? selector.value : undefined;
  const sessionId = token === undefined ? selector.value : credentialId("skt", token);
  const session = sessionId ? await tx.maybeOne(selectOwnedSession(sessionId, ownTenant(call))) : null;
  const proven = session && (token === undefined || macs.matches("credential", token, session.token_hash_text));
  return proven ? heldTo(call, session) : refusal("SERVICE_SESSION_NOT_FOUND");
};

const liveSessions = (request: ListServiceSessionsRequest) => {
  const page = readPage(ListServiceSessionsRequestSchema, request, liveKey);
  const keyOf = (row: SessionRow): LiveKey => [String(row.expiry_us), row.svc_session_id];
  return {
    statement: selectLiveSessions(request.serviceId, page.after ?? [null, null], page.size + 1),
    cut: (rows: readonly SessionRow[]) => cutPage(page, rows, keyOf),
  };
};

const allSessions = (request: ListServiceSessionsRequest) => {
  const page = readPage(ListServiceSessionsRequestSchema, request, z.guid());
  return {
    statement: selectSessions(request.serviceId, page.after ?? null, page.size + 1),
    cut: (rows: readonly SessionRow[]) => cutPage(page, rows, (row) => row.svc_session_id),
  };
};

export const serviceSessionHandlers = ({ db, macs, tokens }: ServiceIdentityParts) =>
  ({
    async revokeServiceSession({ selector }, call) {
      await transact(
        db,
        call,
        async (tx) => {
          const session = await namedSession(tx, call, macs, selector);
          if (session instanceof Refusal) return session;
          const isOwn = session.svc_id === call.caller.serviceId;
          if (!isOwn && !covers(call.caller.permissions, "service.write")) {
            return refusal("PERMISSION_MISSING", { permission: "service.write" });
          }
          const revoked = await tx.maybeOne(revokeSession(session.svc_session_id));
          if (!revoked) return undefined;
          const payload = { session_id: session.svc_session_id };
          await recordEvent(tx, call, { ...serviceEvent("service.session.revoke", session), payload });
          return undefined;
        },
        { settled: tokens.forget },
      );
      return {};
    },

    async verifyServiceToken({ serviceToken, permission, tenantId }, call) {
      const token = await tokens.verify(serviceToken);
      const visible = token && (call.caller.tenantId === undefined || call.caller.tenantId === token.tenantId);
      if (!visible || token.suspended) return { active: false, allowed: false };
      if (tenantId === undefined) checkTenant(call.caller, call.actor, token.tenantId);
      const mayActThere =
        tenantId === undefined || token.tenantId === undefined || token.tenantId === tenantId.toLowerCase();
      return {
        active: true,
        serviceId: token.serviceId,
        key: token.key,
        ...(token.tenantId !== undefined && { tenantId: token.tenantId }),
        permissions: [...token.permissions],
        expireTime: timestampFromMs(token.expireTimeMs),
        allowed: mayActThere && (permission === undefined || covers(token.permissions, permission)),
      };
    },

    async listServiceSessions(request, call) {
      const { statement, cut } = request.includeEnded ? allSessions(request) : liveSessions(request);
      const found = await read(db, call, async (connection) => {
        const service = await visibleService(connection, call, request.serviceId);
        return service instanceof Refusal ? service : connection.any(statement);
      });
      if (found instanceof Refusal) throw found;
      const { rows, nextPageToken } = cut(found);
      return { sessions: rows.map(sessionMessage), nextPageToken };
    },
  }) satisfies Partial<Handlers<typeof ServiceIdentityService>>;
