import { describe, expect, test } from "vitest";
import { IdentityProvider, OtpChannel, OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import { launchForCodes, requestCode } from "../support/codes.ts";
import { person, startGoogleIssuer } from "../support/google-issuer.ts";
import { OTHER_PASSWORD, PASSWORD } from "../support/passwords.ts";
import { oncePerFile, onFileFinished } from "../support/per-file.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TransportName, transports } from "../support/service.ts";
import { actionsOf, addUser, uniqueEmail, uniquePhone, verifyContacts } from "../support/users.ts";

const { RESET_PASSWORD } = OtpPurpose;

const launch = oncePerFile(async (transport: TransportName) => {
  const issuer = await startGoogleIssuer();
  onFileFinished(issuer.close);
  const server = await launchForCodes(transport, issuer.env);

  /** A user whose contacts are somebody's, with a password and a Google account of whoever set it up. */
  const prepare = async () => {
    const [email, phone, who] = [uniqueEmail(), uniquePhone(), person()];
    const user = await addUser(server, { email, phone, password: PASSWORD });
    const { userId, tenantId } = user;
    const idToken = () => issuer.token({ claims: { ...who } });
    await server.auth.linkGoogleIdentity({ tenantId, userId, idToken: await idToken() });
    const loginWithGoogle = async () => server.auth.loginWithGoogle({ tenantId, idToken: await idToken() });
    await loginWithGoogle();
    const providers = async () =>
      (await server.auth.listIdentities({ tenantId, userId })).identities.map(({ provider }) => provider);
    return { tenantId, user, userId, email, phone, loginWithGoogle, providers };
  };
  return { server, prepare };
});

describe.each(transports)("%s: of an account that was set up with somebody's contact", (transport) => {
  test("a login that proves the first one leaves no linked account", async () => {
    const { server, prepare } = await launch(transport);
    const { tenantId, userId, email, loginWithGoogle, providers } = await prepare();
    const sent = await requestCode(server, { tenantId, destination: email });
    expect((await server.auth.loginWithOtp(sent)).passwordRemoved).toBe(true);
    expect(await providers()).toEqual([]);
    await expectRefusal(loginWithGoogle(), "INVALID_CREDENTIALS");
    expect(await actionsOf(server, userId)).toContain("auth.identity.unlink");
  });

  test("so does a reset, which leaves the new password alone", async () => {
    const { server, prepare } = await launch(transport);
    const { tenantId, email, loginWithGoogle, providers } = await prepare();
    const sent = await requestCode(server, { tenantId, destination: email, purpose: RESET_PASSWORD });
    await server.auth.resetPassword({ ...sent, newPassword: OTHER_PASSWORD });
    expect(await providers()).toEqual([IdentityProvider.PASSWORD]);
    await expectRefusal(loginWithGoogle(), "INVALID_CREDENTIALS");
  });

  test("who had proven another contact keeps what he linked", async () => {
    const { server, prepare } = await launch(transport);
    const { tenantId, user, phone, loginWithGoogle, providers } = await prepare();
    await verifyContacts(server, user, { email: true });
    const sent = await requestCode(server, { tenantId, channel: OtpChannel.SMS, destination: phone });
    await server.auth.loginWithOtp(sent);
    expect(await providers()).toEqual([IdentityProvider.GOOGLE]);
    await loginWithGoogle();
  });
});
