import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import { attemptsOf, launchForCodes, otherCode, requestCode, startForCodes } from "../support/codes.ts";
import { CHEAP_PREFIX, OTHER_PASSWORD, PASSWORD, liveSessionIds, storedHash } from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, transports } from "../support/service.ts";
import { actionsOf, addUser, uniqueEmail, uniquePhone, verifyContacts } from "../support/users.ts";

const WEAK = "short";

/** A user with a password, and a code to set another. */
const someone = async (server: TestService, password = PASSWORD, tenant?: string) => {
  const inTenant = tenant === undefined ? {} : { tenantId: tenant };
  const user = await addUser(server, { ...inTenant, ...(password && { password }), displayName: "Annabella Müller" });
  const { tenantId, userId, email = "" } = user;
  const sent = await requestCode(server, { tenantId, destination: email, purpose: OtpPurpose.RESET_PASSWORD });
  const login = (tried: string) =>
    server.auth.loginWithPassword({ tenantId, identifier: { case: "email", value: email }, password: tried });
  return { user, tenantId, userId, email, sent, login };
};

describe.each(transports)("%s", (transport) => {
  test("a code sets a new password, ends all sessions and verifies the contact", async () => {
    const server = await startForCodes(transport);
    const { userId, tenantId, sent, login } = await someone(server);
    await login(PASSWORD);
    await server.auth.resetPassword({ ...sent, newPassword: OTHER_PASSWORD });
    expect(await liveSessionIds(server, userId)).toEqual([]);
    await expectRefusal(login(PASSWORD), "INVALID_CREDENTIALS");
    expect((await login(OTHER_PASSWORD)).user).toMatchObject({ userId, emailVerified: true });
    const actions = await actionsOf(server, userId);
    expect(actions.slice(0, 2).sort()).toEqual(["auth.contact.verify", "auth.password.reset"]);
    const { identities } = await server.auth.listIdentities({ tenantId, userId });
    expect(identities).toHaveLength(1);
    expect(await storedHash(server, userId)).toMatch(CHEAP_PREFIX);
    await expectRefusal(server.auth.resetPassword({ ...sent, newPassword: PASSWORD }), "INVALID_CODE");
  });

  test("a verified contact stays so without another event, and a user without a password gets one", async () => {
    const server = await startForCodes(transport);
    const { user, userId, sent, login } = await someone(server, "");
    await verifyContacts(server, user, { email: true });
    await server.auth.resetPassword({ ...sent, newPassword: PASSWORD });
    expect((await login(PASSWORD)).user?.emailVerified).toBe(true);
    expect(await actionsOf(server, userId)).toEqual(["auth.password.reset", "auth.user.create"]);
  });

  test.each([
    ["short", () => WEAK],
    ["common", () => "1234567890"],
    ["the user's name", () => "annabella müller"],
    ["the user's e-mail", (email: string) => email.toUpperCase()],
  ])("a weak password, %s, counts an attempt and leaves the code unspent", async (_name, weak) => {
    const server = await startForCodes(transport);
    const { email, sent, login } = await someone(server);
    const refused = server.auth.resetPassword({ ...sent, newPassword: weak(email) });
    expect((await expectRefusal(refused, "PASSWORD_TOO_WEAK")).fields).toEqual(["new_password"]);
    expect(await attemptsOf(server, sent)).toEqual({ attempt_count: 1, consumed: false });
    await login(PASSWORD);
    await server.auth.resetPassword({ ...sent, newPassword: OTHER_PASSWORD });
  });

  test("a fifth weak password was the last try", async () => {
    const server = await startForCodes(transport);
    const { sent, login } = await someone(server);
    for (let n = 0; n < 5; n++) {
      await expectRefusal(server.auth.resetPassword({ ...sent, newPassword: WEAK }), "PASSWORD_TOO_WEAK");
    }
    await expectRefusal(server.auth.resetPassword({ ...sent, newPassword: OTHER_PASSWORD }), "INVALID_CODE");
    await login(PASSWORD);
  });

  test("who has no code learns nothing about passwords", async () => {
    const server = await startForCodes(transport);
    const { sent, login } = await someone(server);
    const wrong = { ...sent, code: otherCode(sent.code) };
    const [nobody, inactive] = [
      await requestCode(server, {
        tenantId: sent.tenantId,
        destination: uniqueEmail(),
        purpose: OtpPurpose.RESET_PASSWORD,
      }),
      await someone(server),
    ];
    await server.auth.deactivateUser({ tenantId: inactive.tenantId, userId: inactive.userId });
    const [{ sent: spent }, { sent: expired }] = [await someone(server), await someone(server)];
    await server.auth.resetPassword({ ...spent, newPassword: OTHER_PASSWORD });
    await server.pool.query(sql.unsafe`UPDATE otp_codes SET expiry_utc = now() WHERE otp_id = ${expired.otpId}::uuid`);
    for (const newPassword of [WEAK, OTHER_PASSWORD]) {
      await expectRefusal(server.auth.resetPassword({ ...wrong, newPassword }), "INVALID_CODE");
      await expectRefusal(server.auth.resetPassword({ ...nobody, newPassword }), "INVALID_CODE");
      await expectRefusal(server.auth.resetPassword({ ...spent, newPassword }), "INVALID_CODE");
      await expectRefusal(server.auth.resetPassword({ ...expired, newPassword }), "INVALID_CODE");
    }
    await expectRefusal(server.auth.resetPassword({ ...inactive.sent, newPassword: OTHER_PASSWORD }), "INVALID_CODE");
    await login(PASSWORD);
  });

  test("a reset ends the codes for another one", async () => {
    const server = await startForCodes(transport);
    const [email, phone] = [uniqueEmail(), uniquePhone()];
    const { tenantId } = await addUser(server, { email, phone, password: PASSWORD });
    const purpose = OtpPurpose.RESET_PASSWORD;
    const byPhone = await requestCode(server, { tenantId, channel: 2, destination: phone, purpose });
    const byEmail = await requestCode(server, { tenantId, destination: email, purpose });
    await server.auth.resetPassword({ ...byEmail, newPassword: OTHER_PASSWORD });
    await expectRefusal(server.auth.resetPassword({ ...byPhone, newPassword: PASSWORD }), "INVALID_CODE");
  });

  test("in a suspended tenant a password can be reset, and nobody signs in with it", async () => {
    const server = await startForCodes(transport);
    const { tenantId, sent, login } = await someone(server);
    await server.org.suspendTenant({ tenantId });
    await server.auth.resetPassword({ ...sent, newPassword: OTHER_PASSWORD });
    await expectRefusal(login(OTHER_PASSWORD), "TENANT_SUSPENDED");
  });
});

test("of 40 resets by one code at once one sets its password", async () => {
  const server = await launchForCodes("grpc", { THROTTLES: "off", OTP_ATTEMPT_MAX: "10" });
  const { userId, sent, login } = await someone(server);
  const passwords = Array.from({ length: 40 }, (_, n) => `${OTHER_PASSWORD} ${n}`);
  const settled = await Promise.allSettled(
    passwords.map((newPassword) => server.auth.resetPassword({ ...sent, newPassword })),
  );
  const winners = passwords.filter((_, n) => settled[n]?.status === "fulfilled");
  expect(winners).toHaveLength(1);
  await login(winners[0]!);
  expect((await actionsOf(server, userId)).filter((action) => action === "auth.password.reset")).toHaveLength(1);
});

test("no session that was opened with the former password outlives a reset", { timeout: 120_000 }, async () => {
  const server = await launchForCodes("grpc", { THROTTLES: "off" });
  const tenantId = await server.addTenant();
  const people = await Promise.all(Array.from({ length: 100 }, () => someone(server, PASSWORD, tenantId)));
  for (const { sent, login } of people) {
    await Promise.allSettled([login(PASSWORD), server.auth.resetPassword({ ...sent, newPassword: OTHER_PASSWORD })]);
  }
  const live = await Promise.all(people.map(({ userId }) => liveSessionIds(server, userId)));
  expect(live.flat()).toEqual([]);
});
