import { afterAll } from "vitest";
import { OtpChannel, OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import { codeOf, launchForCodes } from "./codes.ts";
import { type GoogleIssuer, person, startGoogleIssuer } from "./google-issuer.ts";
import type { Known } from "./messages.ts";
import { PASSWORD } from "./passwords.ts";
import type { TestService, TransportName } from "./service.ts";
import { uniqueEmail, uniquePhone } from "./users.ts";

// So many that erasing some leaves the others to be found.
const USERS = 40;
const SIGNED_IN = 6;

/** A server that a storm of random calls gets through to: nothing is counted, hashing is cheap, Google's keys are ours. */
export const launchForStorm = async (
  transport: TransportName,
): Promise<{ readonly server: TestService; readonly issuer: GoogleIssuer }> => {
  const issuer = await startGoogleIssuer();
  afterAll(() => issuer.close());
  const env = { ...issuer.env, OTP_REQUEST_INTERVAL: "0s", OTP_REQUESTS_PER_HOUR: "1000" };
  return { server: await launchForCodes(transport, env), issuer };
};

const CODES = [
  [OtpPurpose.LOGIN, OtpPurpose.LOGIN],
  [OtpPurpose.RESET_PASSWORD, OtpPurpose.VERIFY_EMAIL],
].flat();

/** Users of a tenant with contacts, passwords, sessions, codes and Google accounts, as values of requests' fields. */
export const plantAuth = async (server: TestService, issuer: GoogleIssuer, tenantId: string): Promise<Known> => {
  const { auth } = server;
  const people = Array.from({ length: USERS }, (_, n) => ({
    email: uniqueEmail(),
    phone: uniquePhone(),
    displayName: `Person ${n}`,
    emailVerified: n % 2 === 0,
  }));
  const { results } = await auth.importUsers({ tenantId, users: people });
  const userIds = results.map(({ userId }) => userId);
  const emails = people.map(({ email }) => email);
  const idTokens = await Promise.all(Array.from({ length: SIGNED_IN }, () => issuer.token({ claims: person() })));
  const sessions = [];
  const identityIds: string[] = [];
  for (const [index, userId] of userIds.slice(0, SIGNED_IN).entries()) {
    await auth.setPassword({ tenantId, userId, newPassword: PASSWORD });
    const identifier = { case: "email", value: emails[index]! } as const;
    sessions.push((await auth.loginWithPassword({ tenantId, identifier, password: PASSWORD })).tokens!);
    if (index < 2) await auth.linkGoogleIdentity({ tenantId, userId, idToken: idTokens[index]! });
    identityIds.push(...(await auth.listIdentities({ tenantId, userId })).identities.map((one) => one.identityId));
  }
  const otpIds = await Promise.all(
    emails.slice(0, 12).map(async (destination, index) => {
      const purpose = CODES[index % CODES.length]!;
      return (await auth.requestOtp({ tenantId, channel: OtpChannel.EMAIL, destination, purpose })).otpId;
    }),
  );
  return {
    user_id: userIds,
    user_ids: userIds,
    email: emails,
    phone: people.map(({ phone }) => phone),
    destination: [...emails, ...people.map(({ phone }) => phone)],
    display_name: ["Ann", "Person 1"],
    prefix: ["user-", "+49", "Person"],
    password: [PASSWORD],
    current_password: [PASSWORD],
    new_password: [PASSWORD, "password", "another staple 123"],
    session_id: sessions.map(({ sessionId }) => sessionId),
    keep_session_id: sessions.map(({ sessionId }) => sessionId),
    refresh_token: sessions.map(({ refreshToken }) => refreshToken),
    access_token: sessions.map(({ accessToken }) => accessToken),
    identity_id: identityIds,
    id_token: idTokens,
    otp_id: otpIds,
    code: await Promise.all(otpIds.map((otpId) => codeOf(server, otpId))),
    ip: ["192.0.2.1", "2001:db8::1"],
    google_subject: ["109876543210"],
  };
};
