import { describe, expect, test } from "vitest";
import { heldUp } from "../support/held-up.ts";
import { NEW_PASSWORD, endReasons, plantCodes, someone } from "../support/password-changes.ts";
import { CHEAP_PREFIX, PASSWORD, liveSessionIds, startCheapService, storedHash } from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { transports } from "../support/service.ts";
import { eraseUser, lockUser } from "../support/user-rows.ts";
import { actionsOf, addUser, eventsOf, liveCodes, uniqueEmail, uniquePhone } from "../support/users.ts";

describe.each(transports)("%s: SetPassword", (transport) => {
  test("takes the place of the former password and ends every session and reset code", async () => {
    const server = await startCheapService(transport);
    const { own, userId, login } = await someone(server);
    await login(PASSWORD);
    await login(PASSWORD);
    const { reset, login: loginCode } = await plantCodes(server, own);
    await server.auth.setPassword({ ...own, newPassword: NEW_PASSWORD });
    expect(await liveSessionIds(server, userId)).toEqual([]);
    expect(await endReasons(server, userId)).toEqual(["password"]);
    expect(await liveCodes(server, [reset, loginCode])).toEqual([loginCode]);
    await expectRefusal(login(PASSWORD), "INVALID_CREDENTIALS");
    await login(NEW_PASSWORD);
    const [event, ...others] = await eventsOf(server, userId);
    expect(event).toMatchObject({ action: "auth.password.set", entityKind: "user", tenantId: own.tenantId });
    expect(Object.keys(event?.payload ?? {})).toEqual(["request_id"]);
    expect(others.map(({ action }) => action)).toEqual(["auth.user.create"]);
  });

  test("makes a password identity for a user without one, also while the user is inactive", async () => {
    const server = await startCheapService(transport);
    const { tenantId, userId } = await addUser(server);
    await server.auth.deactivateUser({ tenantId, userId });
    await server.auth.setPassword({
      tenantId: tenantId.toUpperCase(),
      userId: userId.toUpperCase(),
      newPassword: PASSWORD,
    });
    expect(await storedHash(server, userId)).toContain(CHEAP_PREFIX);
    await server.auth.activateUser({ tenantId, userId });
    expect((await server.auth.listIdentities({ tenantId, userId })).identities).toHaveLength(1);
  });

  test("leaves other users' sessions and passwords alone", async () => {
    const server = await startCheapService(transport);
    const one = await someone(server);
    const other = await someone(server, one.tenantId);
    const sessionId = await other.login(PASSWORD);
    await server.auth.setPassword({ ...one.own, newPassword: NEW_PASSWORD });
    expect(await liveSessionIds(server, other.userId)).toEqual([sessionId]);
    await other.login(PASSWORD);
  });

  test("refuses unknown and erased users, users of other tenants, and weak passwords", async () => {
    const server = await startCheapService(transport);
    const { own, userId, tenantId, email } = await someone(server);
    const set = (part: object) => server.auth.setPassword({ ...own, newPassword: NEW_PASSWORD, ...part });
    const { metadata } = await expectRefusal(set({ userId: tenantId }), "USER_NOT_FOUND");
    expect(metadata).toMatchObject({ user_id: tenantId });
    await expectRefusal(set({ tenantId: await server.addTenant() }), "USER_NOT_FOUND");
    for (const newPassword of ["short", "qwertyuiop", email.toUpperCase()]) {
      expect((await expectRefusal(set({ newPassword }), "PASSWORD_TOO_WEAK")).fields).toEqual(["new_password"]);
    }
    for (const newPassword of ["", "x".repeat(257)]) {
      expect((await expectRefusal(set({ newPassword }), "INVALID_REQUEST")).fields).toEqual(["new_password"]);
    }
    const { auth } = await server.addService(["auth.login"]);
    await expectRefusal(auth.setPassword({ ...own, newPassword: NEW_PASSWORD }), "PERMISSION_MISSING");
    await server.auth.eraseUser(own);
    await expectRefusal(set({}), "USER_ERASED");
    expect(await storedHash(server, userId)).toBeUndefined();
    expect(await actionsOf(server, userId)).toEqual(["auth.user.erase", "auth.user.create"]);
  });

  test("a user who is erased while the password is hashed gets none", async () => {
    const server = await startCheapService(transport);
    const { tenantId, userId } = await addUser(server);
    const own = { tenantId, userId };
    const set = () => server.auth.setPassword({ ...own, newPassword: NEW_PASSWORD });
    await expectRefusal(
      heldUp(server, lockUser(own), set, (tx) => tx.query(eraseUser(own))),
      "USER_ERASED",
    );
    expect(await storedHash(server, userId)).toBeUndefined();
  });

  test("no contact and no name of the user becomes its password, neither by an operator nor by itself", async () => {
    const server = await startCheapService(transport);
    const names = { email: uniqueEmail(), phone: uniquePhone(), displayName: "Ada of Ockham Park" };
    const { tenantId, userId } = await addUser(server, { ...names, password: PASSWORD });
    const own = { tenantId, userId };
    for (const newPassword of Object.values(names)) {
      await expectRefusal(server.auth.setPassword({ ...own, newPassword }), "PASSWORD_TOO_WEAK");
      const change = { ...own, currentPassword: PASSWORD, newPassword };
      await expectRefusal(server.auth.changePassword(change), "PASSWORD_TOO_WEAK");
    }
    expect(await actionsOf(server, userId)).toEqual(["auth.user.create"]);
  });

  test("20 at once for a user without a password leave one identity and one password", async () => {
    const server = await startCheapService(transport);
    const email = uniqueEmail();
    const { tenantId, userId } = await addUser(server, { email });
    const passwords = Array.from({ length: 20 }, (_, n) => `password number ${n}`);
    await Promise.all(passwords.map((newPassword) => server.auth.setPassword({ tenantId, userId, newPassword })));
    const identifier = { case: "email", value: email } as const;
    const logins = passwords.map((password) => server.auth.loginWithPassword({ tenantId, identifier, password }));
    const settled = await Promise.allSettled(logins);
    expect(settled.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    expect((await actionsOf(server, userId)).filter((action) => action === "auth.password.set")).toHaveLength(20);
  });
});
