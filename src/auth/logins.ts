import type { AuthService, LoginWithPasswordRequest } from "../gen/auth/v1/auth_pb.ts";
import { activeTenant } from "../org/tenants.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readClient } from "./clients.ts";
import { readContact } from "./contacts.ts";
import { originOf } from "./login-networks.ts";
import type { AuthParts } from "./parts.ts";
import { provePassword, selectByContact } from "./password-proofs.ts";
import { userMessage } from "./users.ts";

const contactOf = ({ identifier }: LoginWithPasswordRequest) =>
  readContact(identifier.case ?? "email", identifier.value ?? "");

export const loginHandlers = (parts: AuthParts) =>
  ({
    async loginWithPassword(request, call) {
      const { tenantId, password } = request;
      const { sessions, passwords } = parts;
      const contact = contactOf(request);
      const client = readClient(request.client);
      const { user, opened } = await provePassword(parts, call, {
        tenantId,
        client,
        password,
        select: selectByContact(tenantId, contact, originOf(parts, tenantId, client)),
        isNamed: (user) => (contact.kind === "email" ? user.email_addr : user.phone_e164) === contact.text,
        identifier: () => `${contact.kind}:${contact.text}`,
        check: (named) => void activeTenant(tenantId, named),
        replacement: async (_, { outdated }) => (outdated ? passwords.hash(call, password) : undefined),
        proven: async (tx, row) => {
          const signIn = { tenantId: row.tenant_id, userId: row.user_id, client, method: "password" } as const;
          return { user: row, opened: await sessions.open(tx, call, signIn) };
        },
      });
      return { user: userMessage(user), tokens: await sessions.tokens(opened) };
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
