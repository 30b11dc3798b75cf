import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { OtpChannel, OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import { attemptsOf, passTime, requestCode, someone, startForCodes } from "../support/codes.ts";
import { PASSWORD, liveSessionIds, storedHash } from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { transports } from "../support/service.ts";
import { actionsOf, addUser, eventsOf, uniqueEmail, uniquePhone, verifyContacts } from "../support/users.ts";

const { EMAIL, SMS } = OtpChannel;
const { VERIFY_EMAIL, VERIFY_PHONE } = OtpPurpose;
const MINUTE_MS = 60_000;

const loginBy = ({ tenantId, email }: { tenantId: string; email: string }) => ({
  tenantId,
  identifier: { case: "email", value: email } as const,
  password: PASSWORD,
});

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
