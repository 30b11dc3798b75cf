import { recordEvent } from "../audit/record.ts";
import { type Tx, read } from "../db/transact.ts";
import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readClient } from "./clients.ts";
import { deletePasswordIdentity, unlinkProviders, upsertPasswordHash } from "./identities.ts";
import { type Proof, proveCode } from "./otp-proofs.ts";
import type { AuthParts } from "./parts.ts";
import { ownOf, passwordChanged } from "./password-changes.ts";
import { checkNewPassword } from "./password-rules.ts";
import { endSessions } from "./sessions.ts";
import { selectUser, userEvent, userMessage } from "./users.ts";

/**
 * Takes an account from whoever set it up with somebody else's contact, and waits for its owner to come: a password set
 * before and the sessions opened before end, and where no contact at all had been proven so do the accounts of providers
 * that were linked (the "trojan identifier" of "Pre-hijacked accounts", Sudhodanan and Paverd, USENIX Security 2022).
 * Answers whether there was a password.
 */
const takeOver = async (tx: Tx, call: Call, { user, isNewlyVerified, isFirst }: Proof): Promise<boolean> => {
  if (!isNewlyVerified) return false;
  const { tenant_id: tenantId, user_id: userId } = user;
  await endSessions(tx, { tenantId, userId, reason: "contact_proven" });
  if (isFirst) await unlinkProviders(tx, call, user);
  const removed = await tx.maybeOne(deletePasswordIdentity(userId));
  if (!removed) return false;
  await recordEvent(tx, call, userEvent("auth.password.remove", tenantId, userId));
  return true;
};

const setPassword = async (tx: Tx, call: Call, { user, isFirst }: Proof, hash: string): Promise<void> => {
  if (isFirst) await unlinkProviders(tx, call, user);
  await tx.one(upsertPasswordHash(user.user_id, hash));
  await passwordChanged(tx, call, user, { action: "auth.password.reset" });
};

const nothing = () => Promise.resolve(undefined);

export const otpUseHandlers = (parts: AuthParts) => {
  const { db, sessions, passwords } = parts;
  return {
    async loginWithOtp({ tenantId, otpId, code, client: info }, call) {
      const client = readClient(info);
      const { user, opened, passwordRemoved } = await proveCode(parts, call, {
        tenantId,
        otpId,
        code,
        client,
        purposes: ["login"],
        signsIn: true,
        prepare: nothing,
        async proven(tx, proof) {
          const removed = await takeOver(tx, call, proof);
          const { tenant_id, user_id } = proof.user;
          const signIn = { tenantId: tenant_id, userId: user_id, client, method: "code" } as const;
          return { user: proof.user, passwordRemoved: removed, opened: await sessions.open(tx, call, signIn) };
        },
      });
      return { user: userMessage(user), tokens: await sessions.tokens(opened), passwordRemoved };
    },

    async verifyContact({ tenantId, otpId, code, client }, call) {
      const user = await proveCode(parts, call, {
        tenantId,
        otpId,
        code,
        client: readClient(client),
        purposes: ["verify_email", "verify_phone"],
        signsIn: false,
        prepare: nothing,
        proven: async (_, proof) => proof.user,
      });
      return { user: userMessage(user) };
    },

    async resetPassword({ tenantId, otpId, code, newPassword, client }, call) {
      await proveCode(parts, call, {
        tenantId,
        otpId,
        code,
        client: readClient(client),
        purposes: ["reset_password"],
        signsIn: false,
        // Only who has the code learns whether the password would do, and only he makes us hash.
        async prepare(userId) {
          const user = await read(db, call, (connection) => connection.one(selectUser(tenantId, userId)));
          return passwords.hash(call, await checkNewPassword(newPassword, "new_password", ownOf(user)));
        },
        proven: (tx, proof, hash) => setPassword(tx, call, proof, hash),
      });
      return {};
    },
  } satisfies Partial<Handlers<typeof AuthService>>;
};
