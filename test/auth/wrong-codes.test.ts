import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { otpUseHandlers } from "../../src/auth/otp-uses.ts";
import { LoginWithOtpRequestSchema, OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import {
  type SentCode,
  attemptsOf,
  launchForCodes,
  newCall,
  otherCode,
  passTime,
  requestCode,
  someone,
  startForCodes,
  watchStatements,
} from "../support/codes.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { type TestService, transports } from "../support/service.ts";
import { addUser, uniqueEmail } from "../support/users.ts";

const { LOGIN, RESET_PASSWORD, VERIFY_EMAIL } = OtpPurpose;
const MINUTE_MS = 60_000;

const expire = ({ pool }: TestService, { otpId }: SentCode) =>
  pool.query(sql.unsafe`UPDATE otp_codes SET expiry_utc = now() - interval '1 second' WHERE otp_id = ${otpId}::uuid`);

describe.each(transports)("%s", (transport) => {
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

test.each(transports)("%s: whatever a code is for, so many guesses are taken and no more", async (transport) => {
  const server = await launchForCodes(transport, { THROTTLE_IDENTIFIER: "3" });
  const { auth } = server;
  const newPassword = "another staple 123";
  const uses: readonly (readonly [OtpPurpose, (guess: SentCode) => Promise<unknown>])[] = [
    [LOGIN, (guess) => auth.loginWithOtp(guess)],
    [VERIFY_EMAIL, (guess) => auth.verifyContact(guess)],
    [RESET_PASSWORD, (guess) => auth.resetPassword({ ...guess, newPassword })],
  ];
  for (const [purpose, use] of uses) {
    const { sent } = await someone(server, purpose);
    for (let n = 0; n < 3; n++) await expectRefusal(use({ ...sent, code: otherCode(sent.code) }), "INVALID_CODE");
    await expectRefusal(use(sent), "RATE_LIMITED");
  }
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
