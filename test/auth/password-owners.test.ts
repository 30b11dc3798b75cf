import { describe, expect, test } from "vitest";
import { NEW_PASSWORD } from "../support/password-changes.ts";
import { OTHER_PASSWORD, PASSWORD, startCheapService } from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, transports } from "../support/service.ts";
import { linkGoogle } from "../support/user-rows.ts";
import { type NewUser, actionsOf, addUser, uniqueEmail, uniquePhone } from "../support/users.ts";

/** A user who signs in by a Google account too. */
const addWithGoogle = async (server: TestService, user: NewUser) => {
  const added = await addUser(server, user);
  await server.pool.query(linkGoogle(added, added.tenantId, added.userId));
  return added;
};

describe.each(transports)("%s", (transport) => {
  test.each(["email", "phone"] as const)(
    "users of two tenants with one %s each sign in with the password of their own, beside a Google account",
    async (kind) => {
      const server = await startCheapService(transport);
      const value = kind === "email" ? uniqueEmail() : uniquePhone();
      const one = await addWithGoogle(server, { [kind]: value, password: PASSWORD });
      const other = await addWithGoogle(server, { [kind]: value, password: OTHER_PASSWORD });
      const login = async (tenantId: string, password: string) =>
        (await server.auth.loginWithPassword({ tenantId, identifier: { case: kind, value }, password })).user?.userId;
      expect(await login(one.tenantId, PASSWORD)).toBe(one.userId);
      expect(await login(other.tenantId, OTHER_PASSWORD)).toBe(other.userId);
      await expectRefusal(login(one.tenantId, OTHER_PASSWORD), "INVALID_CREDENTIALS");
      await expectRefusal(login(other.tenantId, PASSWORD), "INVALID_CREDENTIALS");
    },
  );

  test("a user with a Google account changes its password, and by another tenant's name nothing is learnt of it", async () => {
    const server = await startCheapService(transport);
    const { userId, tenantId, email = "" } = await addWithGoogle(server, { password: PASSWORD });
    const change = { userId, currentPassword: PASSWORD };
    const astray = { ...change, tenantId: await server.addTenant() };
    // Its contacts are compared with the new one only where it is the user's own tenant.
    for (const newPassword of [email, NEW_PASSWORD]) {
      await expectRefusal(server.auth.changePassword({ ...astray, newPassword }), "INVALID_CREDENTIALS");
    }
    await server.auth.changePassword({ ...change, tenantId, newPassword: NEW_PASSWORD });
    expect(await actionsOf(server, userId)).toEqual(["auth.password.change", "auth.user.create"]);
  });
});
