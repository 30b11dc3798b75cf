import { PASSWORD, plantHash } from "./passwords.ts";
import type { TestService } from "./service.ts";
import { addUser, uniqueEmail, uniquePhone } from "./users.ts";

/** A user with a password, and what signs it in. */
export const someone = async (server: TestService) => {
  const { userId, tenantId, email = "" } = await addUser(server, { password: PASSWORD });
  return { userId, tenantId, email, login: { tenantId, identifier: { case: "email", value: email } as const } };
};

/** Those who get one answer, each with the identifier that names it. */
export const noOnes = async (server: TestService) => {
  const tenantId = await server.addTenant();
  const add = async (password?: string) => addUser(server, { tenantId, ...(password && { password }) });
  const [known, inactive, passwordless, erased, hashless, unreadable] = await Promise.all([
    add(PASSWORD),
    add(PASSWORD),
    add(),
    add(PASSWORD),
    add(),
    add(),
  ]);
  await server.auth.deactivateUser({ tenantId, userId: inactive.userId });
  await server.auth.eraseUser({ tenantId, userId: erased.userId });
  await plantHash(server, hashless.userId, null);
  await plantHash(server, unreadable.userId, "{SSHA}AAAA");
  const email = (value = "") => ({ tenantId, identifier: { case: "email", value } as const });
  return {
    known: email(known.email),
    unknown: email(uniqueEmail()),
    "unknown phone": { tenantId, identifier: { case: "phone", value: uniquePhone() } as const },
    inactive: email(inactive.email),
    passwordless: email(passwordless.email),
    erased: email(erased.email),
    "with an empty identity": email(hashless.email),
    "with a hash of no kind": email(unreadable.email),
  };
};
