import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { sql } from "slonik";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { read, transact } from "../db/transact.ts";
import { type AuthService, ListSessionsRequestSchema, type SessionSchema } from "../gen/auth/v1/auth_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { type Weight, cutPage, readPage } from "../rpc/page.ts";
import { refusal } from "../rpc/refusal.ts";
import type { AuthParts } from "./parts.ts";
import { endSession, endSessions } from "./sessions.ts";
import { lockUser, selectUser, userEvent, userNotFound } from "./users.ts";

const lockedSessionRow = z.object({ user_id: z.string(), live: z.boolean() });

const sessionRow = z.object({
  session_id: z.string(),
  user_id: z.string(),
  tenant_id: z.string(),
  client_user_agent_text: z.string().nullable(),
  client_ip_text: z.string().nullable(),
  created_utc: z.number(),
  refreshed_utc: z.number().nullable(),
  expiry_utc: z.number(),
  revoked_utc: z.number().nullable(),
});
type SessionRow = z.output<typeof sessionRow>;

/** Bytes of user agents on a page. */
const PAGE_WEIGHT: Weight<SessionRow> = {
  of: ({ client_user_agent_text: userAgent }) => Buffer.byteLength(userAgent ?? ""),
  max: 3 * 2 ** 20,
};

interface SessionList {
  readonly tenantId: string;
  readonly userId: string;
  readonly includeEnded: boolean;
  readonly afterId: string | null;
  readonly limit: number;
}

// Newest first, since ids are by time.
const selectSessions = ({ tenantId, userId, includeEnded, afterId, limit }: SessionList) => sql.type(sessionRow)`
  SELECT x.session_id, x.user_id, x.tenant_id, x.client_user_agent_text, x.client_ip_text, x.created_utc,
    x.refreshed_utc, x.expiry_utc, x.revoked_utc
  FROM refresh_sessions x
  WHERE x.tenant_id = ${tenantId}::uuid AND x.user_id = ${userId}::uuid
    AND (${includeEnded}::boolean OR x.revoked_utc IS NULL AND x.expiry_utc > now())
    AND (${afterId}::uuid IS NULL OR x.session_id < ${afterId}::uuid)
  ORDER BY x.session_id DESC
  LIMIT ${limit}`;

const lockSession = (tenantId: string, sessionId: string) =>
  sql.type(lockedSessionRow)`
  SELECT x.user_id, x.revoked_utc IS NULL AND x.expiry_utc > now() AS live
  FROM refresh_sessions x
  WHERE x.tenant_id = ${tenantId}::uuid AND x.session_id = ${sessionId}::uuid
  FOR NO KEY UPDATE`;

const clientMessage = ({ client_user_agent_text: userAgent, client_ip_text: ip }: SessionRow) =>
  userAgent === null && ip === null
    ? undefined
    : { ...(userAgent !== null && { userAgent }), ...(ip !== null && { ip }) };

const sessionMessage = (row: SessionRow): MessageInitShape<typeof SessionSchema> => {
  const client = clientMessage(row);
  return {
    sessionId: row.session_id,
    userId: row.user_id,
    tenantId: row.tenant_id,
    ...(client && { client }),
    createTime: timestampFromMs(row.created_utc),
    refreshTime: timestampFromMs(row.refreshed_utc ?? row.created_utc),
    expireTime: timestampFromMs(row.expiry_utc),
    ...(row.revoked_utc !== null && { revokeTime: timestampFromMs(row.revoked_utc) }),
  };
};

export const sessionListHandlers = ({ db }: AuthParts) =>
  ({
    async listSessions(request, call) {
      const { tenantId, userId, includeEnded = false } = request;
      const page = readPage(ListSessionsRequestSchema, request, z.tuple([z.guid()]));
      const list = { tenantId, userId, includeEnded, afterId: page.after?.[0] ?? null, limit: page.size + 1 };
      const found = await read(db, call, async (connection) => {
        const sessions = await connection.any(selectSessions(list));
        // Who has sessions exists: the user is looked for only where there are none.
        return sessions.length > 0 || (await connection.maybeOne(selectUser(tenantId, userId))) ? sessions : undefined;
      });
      if (!found) throw userNotFound(userId);
      const { rows, nextPageToken } = cutPage(page, found, (row): [string] => [row.session_id], PAGE_WEIGHT);
      return { sessions: rows.map(sessionMessage), nextPageToken };
    },

    async revokeSession({ tenantId, sessionId }, call) {
      await transact(db, call, async (tx) => {
        const session = await tx.maybeOne(lockSession(tenantId, sessionId));
        if (!session) return refusal("SESSION_NOT_FOUND", { session_id: sessionId });
        if (session.live) await endSession(tx, call, { tenantId, userId: session.user_id, sessionId }, "revoked");
        return undefined;
      });
      return {};
    },

    async revokeAllSessions({ tenantId, userId }, call) {
      const revokedCount = await transact(db, call, async (tx) => {
        if (!(await tx.maybeOne(lockUser(tenantId, userId)))) return userNotFound(userId);
        const count = await endSessions(tx, { tenantId, userId, reason: "revoked" });
        if (count === 0) return count;
        await recordEvent(tx, call, {
          ...userEvent("auth.session.revoke_all", tenantId, userId),
          payload: { revoked_count: count },
        });
        return count;
      });
      return { revokedCount };
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
