import { sql } from "slonik";
import { recordEvent } from "../audit/record.ts";
import { BATCH, inBatches, noRow } from "../db/batches.ts";
import { type Tx, transact } from "../db/transact.ts";
import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import { endRights } from "../org/erased-users.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { deleteIdentities } from "./identities.ts";
import type { AuthParts } from "./parts.ts";
import { endSessions } from "./sessions.ts";
import { type UserRow, lockUserForErasure, userEvent, userMessage, userNotFound, userRow } from "./users.ts";

const clearSessionClients = (tenantId: string, userId: string) => sql.type(noRow)`
  UPDATE refresh_sessions SET client_user_agent_text = NULL, client_ip_text = NULL
  WHERE session_id = ANY (ARRAY(
    SELECT s.session_id FROM refresh_sessions s
    WHERE s.tenant_id = ${tenantId}::uuid AND s.user_id = ${userId}::uuid
      AND (s.client_user_agent_text IS NOT NULL OR s.client_ip_text IS NOT NULL)
    LIMIT ${BATCH}
  ))`;

/** Also those that were asked for by its contacts while they were nobody's. */
const deleteCodes = ({ tenant_id, user_id, email_addr, phone_e164 }: UserRow) => sql.type(noRow)`
  DELETE FROM otp_codes WHERE otp_id = ANY (ARRAY(
    SELECT c.otp_id FROM otp_codes c WHERE c.tenant_id = ${tenant_id}::uuid AND c.user_id = ${user_id}::uuid
    UNION
    SELECT c.otp_id FROM otp_codes c
    WHERE c.tenant_id = ${tenant_id}::uuid AND c.destination_text IN (${email_addr}::text, ${phone_e164}::text)
    LIMIT ${BATCH}
  ))`;

const deleteNetworks = (tenantId: string, userId: string) => sql.type(noRow)`
  DELETE FROM login_networks WHERE user_id = ${userId}::uuid AND network_hash = ANY (ARRAY(
    SELECT n.network_hash FROM login_networks n
    WHERE n.tenant_id = ${tenantId}::uuid AND n.user_id = ${userId}::uuid
    LIMIT ${BATCH}
  ))`;

const eraseUser = (tenantId: string, userId: string) => sql.type(userRow)`
  UPDATE users SET email_addr = NULL, phone_e164 = NULL, display_label = NULL, email_verified_utc = NULL,
    phone_verified_utc = NULL, user_state_code = 'inactive', erased_utc = clock_timestamp(),
    updated_utc = clock_timestamp()
  WHERE tenant_id = ${tenantId}::uuid AND user_id = ${userId}::uuid
  RETURNING user_id, tenant_id, email_addr, phone_e164, display_label, user_state_code, email_verified_utc,
    phone_verified_utc, erased_utc, created_utc, updated_utc`;

/** Takes all that is personal from a locked user, and all that it may do. What is left names it by its id alone. */
const erase = async (tx: Tx, call: Call, before: UserRow): Promise<UserRow> => {
  const { tenant_id: tenantId, user_id: userId } = before;
  await endSessions(tx, { tenantId, userId, reason: "erased" });
  await inBatches(tx, clearSessionClients(tenantId, userId));
  await inBatches(tx, deleteCodes(before));
  await inBatches(tx, deleteNetworks(tenantId, userId));
  await tx.any(deleteIdentities(userId));
  await endRights(tx, call, before);
  return tx.one(eraseUser(tenantId, userId));
};

export const erasureHandlers = ({ db }: AuthParts) =>
  ({
    async eraseUser({ tenantId, userId }, call) {
      const row = await transact(db, call, async (tx) => {
        const before = await tx.maybeOne(lockUserForErasure(tenantId, userId));
        if (!before) return userNotFound(userId);
        if (before.erased_utc !== null) return before;
        const erased = await erase(tx, call, before);
        await recordEvent(tx, call, userEvent("auth.user.erase", tenantId, userId));
        return erased;
      });
      return { user: userMessage(row) };
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
