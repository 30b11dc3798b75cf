import { randomUUID } from "node:crypto";
import { hashSync as bcryptSync } from "bcryptjs";
import { describe, expect, test } from "vitest";
import { createLog } from "../../src/log.ts";
import { NEW_PASSWORD, endReasons, plantCodes, someone } from "../support/password-changes.ts";
import {
  CHEAP_HASHES,
  CHEAP_PREFIX,
  OTHER_PASSWORD,
  PASSWORD,
  liveSessionIds,
  plantHash,
  startCheapService,
  storedHash,
} from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { launchService, transports } from "../support/service.ts";
import { actionsOf, addUser, eventsOf, liveCodes, uniqueEmail, uniquePhone } from "../support/users.ts";

describe.each(transports)("%s: ChangePassword", (transport) => {
  const change = { currentPassword: PASSWORD, newPassword: NEW_PASSWORD };

  test("ends every session but the one to be kept, and reset codes", async () => {
    const server = await startCheapService(transport);
    const { own, userId, login } = await someone(server);
    const [, kept] = [await login(PASSWORD), await login(PASSWORD), await login(PASSWORD)];
    const { reset, login: loginCode } = await plantCodes(server, own);
    await server.auth.changePassword({ ...own, ...change, keepSessionId: kept.toUpperCase() });
    expect(await liveSessionIds(server, userId)).toEqual([kept]);
    expect(await endReasons(server, userId)).toEqual(["password"]);
    expect(await liveCodes(server, [reset, loginCode])).toEqual([loginCode]);
    await expectRefusal(login(PASSWORD), "INVALID_CREDENTIALS");
    await login(NEW_PASSWORD);
    const [event] = (await eventsOf(server, userId)).filter(({ action }) => action !== "auth.user.create");
    expect(event).toMatchObject({ action: "auth.password.change", entityKind: "user" });
    expect(Object.keys(event?.payload ?? {})).toEqual(["request_id"]);
  });

  test("keeps no session where none is named, nor by another user's", async () => {
    const server = await startCheapService(transport);
    const one = await someone(server);
    const other = await someone(server, one.tenantId);
    const theirs = await other.login(PASSWORD);
    for (const [current, next, keepSessionId] of [
      [PASSWORD, NEW_PASSWORD, undefined],
      [NEW_PASSWORD, PASSWORD, theirs],
      [PASSWORD, OTHER_PASSWORD, randomUUID()],
    ] as const) {
      await one.login(current);
      const changed = { currentPassword: current, newPassword: next, ...(keepSessionId && { keepSessionId }) };
      await server.auth.changePassword({ ...one.own, ...changed });
      expect(await liveSessionIds(server, one.userId)).toEqual([]);
    }
    expect(await liveSessionIds(server, other.userId)).toEqual([theirs]);
  });

  test("whatever is wrong with the present password, the answer is one, and nothing is written", async () => {
    const server = await startCheapService(transport);
    const known = await someone(server);
    const { tenantId } = known;
    const [inactive, passwordless, erased] = [
      await someone(server, tenantId),
      await addUser(server, { tenantId }),
      await someone(server, tenantId),
    ];
    await server.auth.deactivateUser(inactive.own);
    await server.auth.eraseUser(erased.own);
    const before = await storedHash(server, known.userId);
    const sessionId = await known.login(PASSWORD);
    const answers = [];
    for (const [user, currentPassword] of [
      [known.own, OTHER_PASSWORD],
      [{ tenantId, userId: randomUUID() }, PASSWORD],
      [{ tenantId: randomUUID(), userId: known.userId }, PASSWORD],
      [inactive.own, PASSWORD],
      [{ tenantId, userId: passwordless.userId }, PASSWORD],
      [erased.own, PASSWORD],
    ] as const) {
      const changed = server.auth.changePassword({ ...user, ...change, currentPassword });
      const { error, metadata } = await expectRefusal(changed, "INVALID_CREDENTIALS");
      answers.push({ message: error.rawMessage, metadata: Object.keys(metadata) });
    }
    for (const answer of answers) expect(answer).toEqual(answers[0]);
    expect(await storedHash(server, known.userId)).toBe(before);
    expect(await storedHash(server, passwordless.userId)).toBeUndefined();
    expect(await liveSessionIds(server, known.userId)).toEqual([sessionId]);
    expect(await actionsOf(server, known.userId)).toEqual(["auth.user.create"]);
  });

  test("a weak new password says nothing of the present one, nor of the user's contacts to who does not know it", async () => {
    const server = await startCheapService(transport);
    const { own, userId, email, login } = await someone(server);
    const to = (newPassword: string, currentPassword: string) =>
      server.auth.changePassword({ ...own, newPassword, currentPassword });
    for (const current of [PASSWORD, OTHER_PASSWORD]) {
      expect((await expectRefusal(to("qwertyuiop", current), "PASSWORD_TOO_WEAK")).fields).toEqual(["new_password"]);
    }
    await expectRefusal(to(email, OTHER_PASSWORD), "INVALID_CREDENTIALS");
    await expectRefusal(to(email, PASSWORD), "PASSWORD_TOO_WEAK");
    await login(PASSWORD);
    expect(await actionsOf(server, userId)).toEqual(["auth.user.create"]);
    await server.auth.deactivateUser(own);
    await expectRefusal(to(email, PASSWORD), "INVALID_CREDENTIALS");
  });

  test.each([
    [{ currentPassword: "" }, "current_password"],
    [{ newPassword: "x".repeat(257) }, "new_password"],
    [{ keepSessionId: "none" }, "keep_session_id"],
    [{ client: { ip: "localhost" } }, "client.ip"],
    [{ userId: "ann" }, "user_id"],
  ])("a change with %j names the field %s", async (part, field) => {
    const server = await startCheapService(transport);
    const request = { tenantId: randomUUID(), userId: randomUUID(), ...change, ...part };
    expect((await expectRefusal(server.auth.changePassword(request), "INVALID_REQUEST")).fields).toEqual([field]);
  });

  test("a hash of another system is changed like any other, and by its permission alone", async () => {
    const server = await startCheapService(transport);
    const { own, userId, login } = await someone(server);
    await plantHash(server, userId, bcryptSync(PASSWORD.normalize("NFD"), 4));
    const { auth } = await server.addService(["auth.user.*"]);
    await expectRefusal(auth.changePassword({ ...own, ...change }), "PERMISSION_MISSING");
    await server.auth.changePassword({ ...own, ...change, currentPassword: PASSWORD.normalize("NFD") });
    expect(await storedHash(server, userId)).toContain(CHEAP_PREFIX);
    await login(NEW_PASSWORD);
  });

  test("of 20 changes at once with one present password exactly one wins", async () => {
    const server = await startCheapService(transport);
    const { own, userId, login } = await someone(server);
    const changes = Array.from({ length: 20 }, (_, n) =>
      server.auth.changePassword({ ...own, ...change, newPassword: `password number ${n}` }).then(() => n),
    );
    const settled = await Promise.allSettled(changes);
    const won = settled.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
    expect(won).toHaveLength(1);
    for (const one of settled) {
      if (one.status === "rejected") await expectRefusal(Promise.reject(one.reason as Error), "INVALID_CREDENTIALS");
    }
    await login(`password number ${won[0]}`);
    expect((await actionsOf(server, userId)).filter((action) => action === "auth.password.change")).toHaveLength(1);
  });
});

test("a login beside a change of the password leaves a session only where it came after", async () => {
  const server = await startCheapService("grpc");
  const tenantId = await server.addTenant();
  for (let round = 0; round < 40; round++) {
    const { own, userId, login } = await someone(server, tenantId);
    const request = { ...own, currentPassword: PASSWORD, newPassword: NEW_PASSWORD };
    const logins = [1, 2, 3].map(() => login(PASSWORD));
    const [changed] = await Promise.allSettled([server.auth.changePassword(request), ...logins]);
    expect(changed.status).toBe("fulfilled");
    expect(await liveSessionIds(server, userId)).toEqual([]);
  }
});

test("tries of the present password count as tries to log in, by the contact that the user has", async () => {
  const env = { ...CHEAP_HASHES, THROTTLE_IDENTIFIER: "3" };
  const server = await launchService("grpc", { env });
  const tenantId = await server.addTenant();
  const both = { email: uniqueEmail(), phone: uniquePhone() };
  for (const contact of [{ email: uniqueEmail() }, { phone: uniquePhone() }, both]) {
    const { userId } = await addUser(server, { tenantId, ...contact, password: PASSWORD });
    const change = (currentPassword: string) =>
      server.auth.changePassword({ tenantId, userId, currentPassword, newPassword: PASSWORD });
    for (let n = 0; n < 5; n++) await change(PASSWORD);
    for (let n = 0; n < 3; n++) await expectRefusal(change(OTHER_PASSWORD), "INVALID_CREDENTIALS");
    await expectRefusal(change(PASSWORD), "RATE_LIMITED");
    const identifier = contact.email
      ? ({ case: "email", value: contact.email } as const)
      : ({ case: "phone", value: contact.phone ?? "" } as const);
    await expectRefusal(server.auth.loginWithPassword({ tenantId, identifier, password: PASSWORD }), "RATE_LIMITED");
  }
  const nobody = { tenantId, userId: randomUUID(), currentPassword: PASSWORD, newPassword: OTHER_PASSWORD };
  for (let n = 0; n < 3; n++) await expectRefusal(server.auth.changePassword(nobody), "INVALID_CREDENTIALS");
  const written = [nobody.userId, nobody.userId.toUpperCase()];
  for (const userId of written) await expectRefusal(server.auth.changePassword({ ...nobody, userId }), "RATE_LIMITED");
  await server.stop();
});

test("no password, contact or hash stands in the log or in an event", async () => {
  const lines: string[] = [];
  const log = createLog("trace", { write: (line) => lines.push(line) });
  const server = await launchService("grpc", { env: CHEAP_HASHES, log });
  const { own, userId, email, login } = await someone(server);
  await login(PASSWORD);
  await expectRefusal(login(OTHER_PASSWORD), "INVALID_CREDENTIALS");
  await expectRefusal(server.auth.setPassword({ ...own, newPassword: email }), "PASSWORD_TOO_WEAK");
  await server.auth.changePassword({ ...own, currentPassword: PASSWORD, newPassword: NEW_PASSWORD });
  const hash = await storedHash(server, userId);
  await server.auth.setPassword({ ...own, newPassword: OTHER_PASSWORD });
  const events = JSON.stringify((await eventsOf(server, userId)).map(({ payload }) => payload));
  await server.stop();
  expect(lines.join("")).toContain("LoginWithPassword");
  for (const secret of [PASSWORD, OTHER_PASSWORD, NEW_PASSWORD, email, hash ?? ""]) {
    expect(lines.join("")).not.toContain(secret);
    expect(events).not.toContain(secret);
  }
});
