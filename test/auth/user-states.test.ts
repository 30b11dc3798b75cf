import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { type User, UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, startService, transports } from "../support/service.ts";
import { signInBy } from "../support/sign-in.ts";
import { actionsOf, addUser, liveCodes, plantCode } from "../support/users.ts";

const PASSWORD = "correct horse battery";

const keyOf = ({ tenantId, userId }: User) => ({ tenantId, userId });

const sessionRow = z.object({ session_id: z.string(), end_reason_code: z.string().nullable(), live: z.boolean() });

const sessionsOf = ({ pool }: TestService, { userId }: User) =>
  pool.any(sql.type(sessionRow)`
    SELECT session_id, end_reason_code, revoked_utc IS NULL AS live
    FROM refresh_sessions WHERE user_id = ${userId}::uuid ORDER BY session_id`);

const logIn = (server: TestService, { tenantId, email = "" }: User) =>
  server.auth.loginWithPassword({ tenantId, identifier: { case: "email", value: email }, password: PASSWORD });

describe.each(transports)("%s", (transport) => {
  test("a deactivated user's sessions and codes have ended, and it signs in only once it is active again", async () => {
    const server = await startService(transport);
    const signIn = await signInBy(server);
    const user = await addUser(server, { password: PASSWORD });
    const other = await addUser(server, { tenantId: user.tenantId });
    for (const { userId } of [user, user, other]) await signIn({ tenantId: user.tenantId, userId });
    const code = await plantCode(server, { ...keyOf(user), destination: user.email! });
    const foreignCode = await plantCode(server, { ...keyOf(other), destination: other.email! });

    const { user: inactive } = await server.auth.deactivateUser(keyOf(user));
    expect(inactive).toMatchObject({ ...keyOf(user), email: user.email, state: UserState.INACTIVE });
    expect((await sessionsOf(server, user)).map(({ live, end_reason_code }) => [live, end_reason_code])).toEqual([
      [false, "deactivated"],
      [false, "deactivated"],
    ]);
    expect((await sessionsOf(server, other)).map(({ live }) => live)).toEqual([true]);
    expect(await liveCodes(server, [code, foreignCode])).toEqual([foreignCode]);
    await expectRefusal(logIn(server, user), "INVALID_CREDENTIALS");

    expect((await server.auth.activateUser(keyOf(user))).user).toMatchObject({ state: UserState.ACTIVE });
    expect((await sessionsOf(server, user)).map(({ live }) => live)).toEqual([false, false]);
    expect(await liveCodes(server, [code])).toEqual([]);
    await logIn(server, user);
  });

  test("both answer the same again, with one event each, also where several call at once", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const users = await Promise.all(Array.from({ length: 5 }, () => addUser(server, { tenantId })));
    await Promise.all(
      users.map(async (user) => {
        const { user: inactive } = await server.auth.deactivateUser(keyOf(user));
        expect((await server.auth.deactivateUser(keyOf(user))).user).toEqual(inactive);
      }),
    );
    const answers = await Promise.all(
      users.map((user) => Promise.all(Array.from({ length: 4 }, () => server.auth.activateUser(keyOf(user))))),
    );
    for (const [first, ...others] of answers) for (const { user } of others) expect(user).toEqual(first?.user);
    for (const { userId } of users) {
      const actions = ["auth.user.activate", "auth.user.deactivate", "auth.user.create"];
      expect(await actionsOf(server, userId)).toEqual(actions);
    }
  });

  test("of 20 that sign in while the user is deactivated no session survives", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { password: PASSWORD });
    const logins = Array.from({ length: 20 }, () => logIn(server, user));
    // The first has signed in, and the others are on their way.
    await Promise.any(logins);
    await server.auth.deactivateUser(keyOf(user));
    await Promise.allSettled(logins);
    const sessions = await sessionsOf(server, user);
    expect(sessions.length).toBeGreaterThan(0);
    expect(sessions.filter(({ live }) => live)).toEqual([]);
  });

  test("an unknown user, one of another tenant and an erased one are neither deactivated nor activated", async () => {
    const server = await startService(transport);
    const user = await addUser(server);
    const { auth } = await server.addService(["auth.user.write"], user.tenantId);
    for (const change of [server.auth.deactivateUser, server.auth.activateUser]) {
      for (const key of [
        { ...keyOf(user), userId: randomUUID() },
        { ...keyOf(user), tenantId: await server.addTenant() },
      ]) {
        expect((await expectRefusal(change(key), "USER_NOT_FOUND")).metadata).toMatchObject({ user_id: key.userId });
      }
      await expectRefusal(change({ ...keyOf(user), userId: "x" }), "INVALID_REQUEST");
    }
    await expectRefusal(auth.deactivateUser({ ...keyOf(user), tenantId: randomUUID() }), "TENANT_MISMATCH");
    await auth.eraseUser(keyOf(user));
    await expectRefusal(auth.activateUser(keyOf(user)), "USER_ERASED");
    await expectRefusal(auth.deactivateUser(keyOf(user)), "USER_ERASED");
    expect(await actionsOf(server, user.userId)).toEqual(["auth.user.erase", "auth.user.create"]);
  });
});
