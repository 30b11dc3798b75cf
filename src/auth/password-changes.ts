import { recordEvent } from "../audit/record.ts";
import { type Tx, read, transact } from "../db/transact.ts";
import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal } from "../rpc/refusal.ts";
import { readClient } from "./clients.ts";
import { upsertPasswordHash } from "./identities.ts";
import { originOf } from "./login-networks.ts";
import { endCodes } from "./otp-codes.ts";
import type { AuthParts } from "./parts.ts";
import { type NamedRow, provePassword, selectById } from "./password-proofs.ts";
import { checkNewPassword } from "./password-rules.ts";
import { endSessions } from "./sessions.ts";
import { type UserRow, changeableUser, lockUser, selectUser, userEvent } from "./users.ts";

const NEW_PASSWORD = "new_password";

type Owner = Pick<UserRow, "email_addr" | "phone_e164" | "display_label">;

/** What a password must not be (`checkNewPassword`). */
export const ownOf = (user: Owner) => [user.email_addr, user.phone_e164, user.display_label];

interface Change {
  readonly action: "auth.password.set" | "auth.password.change" | "auth.password.reset";
  readonly keepSessionId?: string | undefined;
}

/** What follows from a new password, whoever set it: what was opened or could be opened without it ends. */
export const passwordChanged = async (tx: Tx, call: Call, user: UserRow, { action, keepSessionId }: Change) => {
  const { tenant_id: tenantId, user_id: userId } = user;
  // Whoever asked for another password has one now, or did not ask.
  await tx.any(endCodes(tenantId, userId, ["reset_password"]));
  await endSessions(tx, { tenantId, userId, exceptSessionId: keepSessionId, reason: "password" });
  await recordEvent(tx, call, userEvent(action, tenantId, userId));
};

// A user with two contacts has its tries here counted under the first one; a login counts under the one that it names.
const identifierOf = (userId: string, named: NamedRow | undefined) => {
  if (named?.email_addr) return `email:${named.email_addr}`;
  return named?.phone_e164 ? `phone:${named.phone_e164}` : `user:${userId.toLowerCase()}`;
};

export const passwordChangeHandlers = (parts: AuthParts) => {
  const { db, passwords } = parts;
  return {
    async setPassword({ tenantId, userId, newPassword }, call) {
      const before = changeableUser(
        await read(db, call, (connection) => connection.maybeOne(selectUser(tenantId, userId))),
        userId,
      );
      if (before instanceof Refusal) throw before;
      const hash = await passwords.hash(call, await checkNewPassword(newPassword, NEW_PASSWORD, ownOf(before)));
      await transact(db, call, async (tx) => {
        const user = changeableUser(await tx.maybeOne(lockUser(tenantId, userId)), userId);
        if (user instanceof Refusal) return user;
        await tx.one(upsertPasswordHash(user.user_id, hash));
        await passwordChanged(tx, call, user, { action: "auth.password.set" });
        return undefined;
      });
      return {};
    },

    async changePassword({ tenantId, userId, currentPassword, newPassword, keepSessionId, client: info }, call) {
      const client = readClient(info);
      // First, so that a weak one says nothing of the present one; and without the user's contacts, which only who
      // knows the present one may learn of.
      await checkNewPassword(newPassword, NEW_PASSWORD, []);
      await provePassword(parts, call, {
        tenantId,
        client,
        password: currentPassword,
        select: selectById(tenantId, userId, originOf(parts, tenantId, client)),
        isNamed: () => true,
        identifier: (named) => identifierOf(userId, named),
        replacement: async (named) =>
          passwords.hash(call, await checkNewPassword(newPassword, NEW_PASSWORD, ownOf(named))),
        proven: (tx, user) => passwordChanged(tx, call, user, { action: "auth.password.change", keepSessionId }),
      });
      return {};
    },
  } satisfies Partial<Handlers<typeof AuthService>>;
};
