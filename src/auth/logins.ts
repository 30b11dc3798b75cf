import type { AuthService, LoginWithPasswordRequest } from "../gen/auth/v1/auth_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { refusal } from "../rpc/refusal.ts";
import { readClient } from "./clients.ts";
import { readContact } from "./contacts.ts";
import type { AuthParts } from "./parts.ts";
import { type NamedRow, originOf, provePassword, selectByContact } from "./password-proofs.ts";
import { userMessage } from "./users.ts";

const contactOf = ({ identifier }: LoginWithPasswordRequest) =>
  readContact(identifier.case ?? "email", identifier.value ?? "");

const checkTenantState = (tenantId: string, named: NamedRow | undefined) => {
  if (!named) throw refusal("TENANT_NOT_FOUND", { tenant_id: tenantId });
  if (named.tenant_state_code === "suspended") throw refusal("TENANT_SUSPENDED", { tenant_id: tenantId });
};

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
        identifier: () => `${contact.kind}:${contact.text}`,
        check: (named) => checkTenantState(tenantId, named),
        replacement: async (_, { outdated }) => (outdated ? passwords.hash(call, password) : undefined),
        proven: async (tx, row) => {
          const signIn = { tenantId: row.tenant_id, userId: row.user_id, client, method: "password" } as const;
          return { user: row, opened: await sessions.open(tx, call, signIn) };
        },
      });
      return { user: userMessage(user), tokens: await sessions.tokens(opened) };
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
