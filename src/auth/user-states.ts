import { sql } from "slonik";
import { recordEvent } from "../audit/record.ts";
import { transact } from "../db/transact.ts";
import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal } from "../rpc/refusal.ts";
import { endCodes } from "./otp-codes.ts";
import type { AuthParts } from "./parts.ts";
import { endSessions } from "./sessions.ts";
import { type UserRow, changeableUser, lockUser, userEvent, userMessage, userRow } from "./users.ts";

type StateCode = UserRow["user_state_code"];

const updateUserState = (tenantId: string, userId: string, state: StateCode) => sql.type(userRow)`
  UPDATE users SET user_state_code = ${state}, updated_utc = clock_timestamp()
  WHERE tenant_id = ${tenantId}::uuid AND user_id = ${userId}::uuid
  RETURNING user_id, tenant_id, email_addr, phone_e164, display_label, user_state_code, email_verified_utc,
    phone_verified_utc, erased_utc, created_utc, updated_utc`;

const ACTIONS = { active: "auth.user.activate", inactive: "auth.user.deactivate" } as const;

export const userStateHandlers = ({ db }: AuthParts) => {
  const setState = async (tenantId: string, userId: string, state: StateCode, call: Call) => {
    const row = await transact(db, call, async (tx) => {
      const before = changeableUser(await tx.maybeOne(lockUser(tenantId, userId)), userId);
      if (before instanceof Refusal || before.user_state_code === state) return before;
      const after = await tx.one(updateUserState(tenantId, userId, state));
      if (state === "inactive") {
        await endSessions(tx, { tenantId, userId, reason: "deactivated" });
        // One that was sent before must open nothing, even where the user is active again before it expires.
        await tx.any(endCodes(tenantId, userId));
      }
      await recordEvent(tx, call, userEvent(ACTIONS[state], tenantId, userId));
      return after;
    });
    return { user: userMessage(row) };
  };

  return {
    deactivateUser: ({ tenantId, userId }, call) => setState(tenantId, userId, "inactive", call),
    activateUser: ({ tenantId, userId }, call) => setState(tenantId, userId, "active", call),
  } satisfies Partial<Handlers<typeof AuthService>>;
};
