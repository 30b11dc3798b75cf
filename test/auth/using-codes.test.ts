import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { otpUseHandlers } from "../../src/auth/otp-uses.ts";
import { LoginWithOtpRequestSchema, OtpChannel, OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import {
  type SentCode,
  attemptsOf,
  launchForCodes,
  newCall,
  otherCode,
  passTime,
  requestCode,
  startForCodes,
  watchStatements,
} from "../support/codes.ts";
import { PASSWORD, liveSessionIds, storedHash } from "../support/passwords.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { type TestService, transports } from "../support/service.ts";
import { actionsOf, addUser, eventsOf, uniqueEmail, uniquePhone, verifyContacts } from "../support/users.ts";

const { EMAIL, SMS } = OtpChannel;
const { LOGIN, RESET_PASSWORD, VERIFY_EMAIL, VERIFY_PHONE } = OtpPurpose;
const MINUTE_MS = 60_000;

/** A user with an e-mail, and a code for it. */
const someone = async (server: TestService, purpose: OtpPurpose = LOGIN) => {
  const user = await addUser(server, { password: PASSWORD });
  const { tenantId, userId, email = "" } = user;
  return { user, tenantId, userId, email, sent: await requestCode(server, { tenantId, destination: email, purpose }) };
};

const loginBy = ({ tenantId, email }: { tenantId: string; email: string }) => ({
  tenantId,
  identifier: { case: "email", value: email } as const,
  password: PASSWORD,
});

const expire = ({ pool }: TestService, { otpId }: SentCode) =>
  pool.query(sql.unsafe`UPDATE otp_codes SET expiry_utc = now() - interval '1 second' WHERE otp_id = ${otpId}::uuid`);

describe.each(transports)("%s", (transport) => {
  test("a code signs its user in and verifies the e-mail address", async () => {
    const server = await startForCodes(transport);
    const { tenantId, userId, sent } = await someone(server);
    const client = { ip: "192.0.2.1", userAgent: "Firefox" };
    const { user, tokens } = await server.auth.loginWithOtp({ ...sent, client });
    expect(user).toMatchObject({ userId, emailVerified: true, phoneVerified: false });
    const verified = await server.auth.verifyAccessToken({ accessToken: tokens!.accessToken });
    expect(verified).toMatchObject({ active: true, userId, tenantId, sessionId: tokens!.sessionId });
    const [created] = await eventsOf(server, tokens!.sessionId);
    expect(created).toMatchObject({ action: "auth.session.create", payload: { method: "code", user_id: userId } });
    const verifications = (await eventsOf(server, userId)).filter(({ action }) => action === "auth.contact.verify");
    expect(verifications).toMatchObject([{ tenantId, payload: { fields: ["email_verified"] } }]);
    expect(await attemptsOf(server, sent)).toEqual({ attempt_count: 1, consumed: true });
  });

  test("a code by text message signs its user in and verifies the phone", async () => {
    const server = await startForCodes(transport);
    const { tenantId, userId, phone = "" } = await addUser(server, { phone: uniquePhone() });
    const sent = await requestCode(server, { tenantId: tenantId.toUpperCase(), channel: SMS, destination: phone });
    const request = { ...sent, otpId: sent.otpId.toUpperCase() };
    const { user, passwordRemoved } = await server.auth.loginWithOtp(request);
    expect(user).toMatchObject({ userId, tenantId, phoneVerified: true, emailVerified: false });
    expect(passwordRemoved).toBe(false);
  });

  test("a login that proves a contact takes the account from whoever set it up", async () => {
    const server = await startForCodes(transport);
    const { tenantId, userId, email, sent } = await someone(server);
    const { tokens: prepared } = await server.auth.loginWithPassword(loginBy({ tenantId, email }));
    const { tokens, passwordRemoved } = await server.auth.loginWithOtp(sent);
    expect(passwordRemoved).toBe(true);
    expect(await storedHash(server, userId)).toBeUndefined();
    expect(await liveSessionIds(server, userId)).toEqual([tokens!.sessionId]);
    await expectRefusal(server.auth.loginWithPassword(loginBy({ tenantId, email })), "INVALID_CREDENTIALS");
    await expectRefusal(server.auth.refreshSession({ refreshToken: prepared!.refreshToken }), "SESSION_INVALID");
    const actions = await actionsOf(server, userId);
    expect(actions.slice(0, 2).sort()).toEqual(["auth.contact.verify", "auth.password.remove"]);
  });

  test("a login by a contact that was verified before takes nothing", async () => {
    const server = await startForCodes(transport);
    const { user, userId, tenantId, email, sent } = await someone(server);
    await verifyContacts(server, user, { email: true });
    await server.auth.loginWithPassword(loginBy({ tenantId, email }));
    const before = await actionsOf(server, userId);
    expect((await server.auth.loginWithOtp(sent)).passwordRemoved).toBe(false);
    expect(await liveSessionIds(server, userId)).toHaveLength(2);
    expect(await actionsOf(server, userId)).toEqual(before);
    await server.auth.loginWithPassword(loginBy({ tenantId, email }));
  });

  test.each([
    ["an e-mail address", EMAIL, VERIFY_EMAIL, { emailVerified: true, phoneVerified: false }],
    ["a phone number", SMS, VERIFY_PHONE, { emailVerified: false, phoneVerified: true }],
  ])("a code verifies %s, and leaves password and sessions", async (_name, channel, purpose, verified) => {
    const server = await startForCodes(transport);
    const [email, phone] = [uniqueEmail(), uniquePhone()];
    const { tenantId, userId } = await addUser(server, { email, phone, password: PASSWORD });
    await server.auth.loginWithPassword(loginBy({ tenantId, email }));
    const destination = channel === EMAIL ? email : phone;
    const verify = async () =>
      server.auth.verifyContact(await requestCode(server, { tenantId, channel, purpose, destination }));
    expect((await verify()).user).toMatchObject({ userId, ...verified });
    expect(await liveSessionIds(server, userId)).toHaveLength(1);
    await server.auth.loginWithPassword(loginBy({ tenantId, email }));
    await passTime(server, MINUTE_MS);
    expect((await verify()).user).toMatchObject({ userId, ...verified });
    expect((await actionsOf(server, userId)).filter((action) => action === "auth.contact.verify")).toHaveLength(1);
  });

  test("a code is good once", async () => {
    const server = await startForCodes(transport);
    const { sent } = await someone(server, VERIFY_EMAIL);
    await server.auth.verifyContact(sent);
    await expectRefusal(server.auth.verifyContact(sent), "INVALID_CODE");
  });

  test("five wrong guesses end a code", async () => {
    const server = await startForCodes(transport);
    const { sent } = await someone(server);
    for (const code of [otherCode(sent.code), "0", `${sent.code} `, ` ${sent.code}`, "x".repeat(32)]) {
      await expectRefusal(server.auth.loginWithOtp({ ...sent, code }), "INVALID_CODE");
    }
    await expectRefusal(server.auth.loginWithOtp(sent), "INVALID_CODE");
    expect(await attemptsOf(server, sent)).toEqual({ attempt_count: 5, consumed: false });
  });

  test("a code is for its purpose alone, and is not spent by another", async () => {
    const server = await startForCodes(transport);
    const { auth } = server;
    const { tenantId, email } = await someone(server);
    await passTime(server, MINUTE_MS);
    const code = (purpose: OtpPurpose) => requestCode(server, { tenantId, destination: email, purpose });
    const [login, verify, reset] = [await code(LOGIN), await code(VERIFY_EMAIL), await code(RESET_PASSWORD)];
    const newPassword = "another staple 123";
    for (const sent of [verify, reset]) await expectRefusal(auth.loginWithOtp(sent), "INVALID_CODE");
    for (const sent of [login, reset]) await expectRefusal(auth.verifyContact(sent), "INVALID_CODE");
    for (const sent of [login, verify])
      await expectRefusal(auth.resetPassword({ ...sent, newPassword }), "INVALID_CODE");
    await auth.verifyContact(verify);
    await auth.loginWithOtp(login);
    await auth.resetPassword({ ...reset, newPassword });
  });

  test("every code that is not right is answered alike", async () => {
    const server = await startForCodes(transport);
    const { auth } = server;
    const wrong: Record<string, SentCode> = {};
    const right = async () => (await someone(server)).sent;

    wrong.guessed = await right().then((sent) => ({ ...sent, code: otherCode(sent.code) }));
    wrong.unknown = { ...(await right()), otpId: randomUUID() };
    wrong["of an unknown tenant"] = { ...(await right()), tenantId: randomUUID() };
    wrong["of another tenant"] = { ...(await right()), tenantId: await server.addTenant() };
    wrong["of another code"] = { ...(await right()), code: (await right()).code };
    wrong.expired = await right();
    await expire(server, wrong.expired);
    wrong["of nobody"] = await requestCode(server, { tenantId: await server.addTenant(), destination: uniqueEmail() });

    const moved = await someone(server);
    const newEmail = { email: uniqueEmail(), updateMask: { paths: ["email"] } };
    await auth.updateUser({ tenantId: moved.tenantId, userId: moved.userId, ...newEmail });
    wrong["of a former contact"] = moved.sent;
    const changed = await someone(server);
    await server.pool.query(sql.unsafe`
      UPDATE users SET email_addr = ${uniqueEmail()} WHERE user_id = ${changed.userId}::uuid`);
    wrong["of a contact that a bulk load has changed"] = changed.sent;
    const disabled = await someone(server);
    await server.pool.query(sql.unsafe`
      UPDATE users SET user_state_code = 'inactive' WHERE user_id = ${disabled.userId}::uuid`);
    wrong["of a user whom a bulk load has made inactive"] = disabled.sent;
    const inactive = await someone(server);
    await auth.deactivateUser({ tenantId: inactive.tenantId, userId: inactive.userId });
    wrong["of an inactive user"] = inactive.sent;
    const erased = await someone(server);
    await auth.eraseUser({ tenantId: erased.tenantId, userId: erased.userId });
    wrong["of an erased user"] = erased.sent;

    const answers = await Promise.all(
      Object.entries(wrong).map(async ([name, sent]) => {
        const { error, metadata, fields } = await expectRefusal(auth.loginWithOtp(sent), "INVALID_CODE");
        const names = Object.keys(metadata).filter((key) => key !== "request_id");
        return [name, { message: error.message, names, fields }];
      }),
    );
    const [[, first]] = answers as [[string, unknown]];
    for (const [name, answer] of answers) expect([name, answer]).toEqual([name, first]);
    expect(await attemptsOf(server, wrong["of nobody"])).toEqual({ attempt_count: 1, consumed: false });
  });

  test("a former contact's code is wrong also where another user has the contact now", async () => {
    const server = await startForCodes(transport);
    const { tenantId, userId, email, sent } = await someone(server, VERIFY_EMAIL);
    await server.auth.updateUser({ tenantId, userId, email: uniqueEmail(), updateMask: { paths: ["email"] } });
    const { userId: other } = await addUser(server, { tenantId, email });
    await expectRefusal(server.auth.verifyContact(sent), "INVALID_CODE");
    expect((await server.auth.getUser({ tenantId, key: { case: "userId", value: other } })).user?.emailVerified).toBe(
      false,
    );
  });

  test("in a suspended tenant nobody signs in by a code, and a contact can be verified", async () => {
    const server = await startForCodes(transport);
    const { tenantId, email, sent } = await someone(server);
    const verify = await requestCode(server, { tenantId, destination: email, purpose: VERIFY_EMAIL });
    await server.org.suspendTenant({ tenantId });
    await expectRefusal(server.auth.loginWithOtp(sent), "TENANT_SUSPENDED");
    await expectRefusal(server.auth.loginWithOtp({ ...sent, otpId: randomUUID() }), "TENANT_SUSPENDED");
    expect((await server.auth.verifyContact(verify)).user?.emailVerified).toBe(true);
    await server.org.activateTenant({ tenantId });
    await server.auth.loginWithOtp(sent);
  });

  test("a tenant's service uses codes of its own tenant alone", async () => {
    const server = await startForCodes(transport);
    const { tenantId, sent } = await someone(server);
    const { auth } = await server.addService(["auth.login"], await server.addTenant());
    await expectRefusal(auth.loginWithOtp(sent), "TENANT_MISMATCH");
    const own = await server.addService(["auth.login"], tenantId);
    await own.auth.loginWithOtp(sent);
  });

  test("requests that break a rule are refused, with the field", async () => {
    const { auth } = await startForCodes(transport);
    const request = { tenantId: randomUUID(), otpId: randomUUID(), code: "123456" };
    const fields = async (call: Promise<unknown>) => (await expectRefusal(call, "INVALID_REQUEST")).fields;
    expect(await fields(auth.loginWithOtp({ ...request, otpId: "1" }))).toEqual(["otp_id"]);
    expect(await fields(auth.verifyContact({ ...request, code: "" }))).toEqual(["code"]);
    expect(await fields(auth.verifyContact({ ...request, client: { ip: "1.2.3" } }))).toEqual(["client.ip"]);
  });
});

test("a wrong guess runs the same statements, whoever has the destination", async () => {
  const server = await startForCodes("grpc");
  const { statements, parts } = watchStatements(server);
  const { loginWithOtp } = otpUseHandlers(parts);
  const statementsFor = async (sent: SentCode, code = otherCode(sent.code)) => {
    statements.length = 0;
    const request = create(LoginWithOtpRequestSchema, { ...sent, code, client: { ip: "192.0.2.1" } });
    await expect(loginWithOtp(request, newCall())).rejects.toMatchObject({ reason: "INVALID_CODE" });
    return [...statements];
  };
  const { tenantId, sent, email } = await someone(server);
  const nobody = await requestCode(server, { tenantId, destination: uniqueEmail() });
  const reset = await requestCode(server, { tenantId, destination: email, purpose: RESET_PASSWORD });
  await statementsFor(sent);
  const expected = await statementsFor(sent);
  await statementsFor(nobody);
  expect(await statementsFor(nobody)).toEqual(expected);
  expect(await statementsFor(nobody, nobody.code)).toEqual(expected);
  expect(await statementsFor(reset, reset.code)).toEqual(expected);
});

test("a code's guesses are counted by its destination and address, and right ones are given back", async () => {
  const server = await launchForCodes("grpc", { THROTTLE_IDENTIFIER_ADDRESS: "3", OTP_REQUESTS_PER_HOUR: "100" });
  const { tenantId, email: destination = "" } = await addUser(server);
  const client = { ip: "192.0.2.1" };
  const next = async () => {
    await passTime(server, 61_000);
    return requestCode(server, { tenantId, destination });
  };
  for (let n = 0; n < 5; n++) await server.auth.loginWithOtp({ ...(await next()), client });
  const sent = await next();
  for (let n = 0; n < 3; n++) {
    await expectRefusal(server.auth.loginWithOtp({ ...sent, code: otherCode(sent.code), client }), "INVALID_CODE");
  }
  await expectRefusal(server.auth.loginWithOtp({ ...sent, client }), "RATE_LIMITED");
  expect(await attemptsOf(server, sent)).toEqual({ attempt_count: 3, consumed: false });
  await server.auth.loginWithOtp({ ...sent, client: { ip: "198.51.100.1" } });
});

test("nobody locks a user out from where he logs in, however many tries fail elsewhere and next door", async () => {
  const server = await launchForCodes("grpc", {
    THROTTLE_IDENTIFIER: "3",
    THROTTLE_ADDRESS: "3",
    THROTTLE_TENANT: "5",
    OTP_REQUESTS_PER_HOUR: "100",
  });
  const { tenantId, email: destination = "" } = await addUser(server);
  const [home, nextDoor, away] = [{ ip: "192.0.2.1" }, { ip: "192.0.2.200" }, { ip: "198.51.100.1" }] as const;
  const request = (client: { ip: string } = home) => requestCode(server, { tenantId, destination, client });
  await server.auth.loginWithOtp({ ...(await request()), client: home });
  await passTime(server, 61_000);
  const sent = await request();

  const untilLimited = async (call: () => Promise<unknown>) => {
    for (let n = 0; n < 3; n++) await refused(call());
    await expectRefusal(call(), "RATE_LIMITED");
  };
  const guess = () => server.auth.loginWithOtp({ ...sent, code: otherCode(sent.code), client: away });
  const guessAnything = () => server.auth.loginWithOtp({ ...sent, otpId: randomUUID(), client: nextDoor });
  await untilLimited(guess);
  await untilLimited(guessAnything);
  const strangers = [nextDoor, nextDoor, nextDoor, { ip: "203.0.113.1" }, { ip: "203.0.114.1" }, away];
  for (const client of strangers) {
    await requestCode(server, { tenantId, destination: uniqueEmail(), client }).catch(() => undefined);
  }

  await expectRefusal(server.auth.loginWithOtp({ ...sent, client: away }), "RATE_LIMITED");
  await expectRefusal(server.auth.loginWithOtp(sent), "RATE_LIMITED");
  await server.auth.loginWithOtp({ ...sent, client: home });
  await passTime(server, 61_000);
  await expectRefusal(request(away), "RATE_LIMITED");
  await server.auth.loginWithOtp({ ...(await request()), client: nextDoor });
});
