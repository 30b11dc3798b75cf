import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { AuthService, OtpChannel, OtpPurpose, type User } from "../../src/gen/auth/v1/auth_pb.ts";
import { codeOf, launchForCodes } from "../support/codes.ts";
import { plantWindows } from "../support/erasures.ts";
import { type GoogleIssuer, person, startGoogleIssuer } from "../support/google-issuer.ts";
import { type Stage as AnyStage, mutationOf, testMutations } from "../support/mutations.ts";
import { OTHER_PASSWORD, PASSWORD } from "../support/passwords.ts";
import { oncePerFile } from "../support/per-file.ts";
import { recorded } from "../support/recorded.ts";
import { refused } from "../support/refusals.ts";
import { type TestService, type TransportName, transports } from "../support/service.ts";
import { addUser, plantCode, uniqueEmail, verifyContacts } from "../support/users.ts";

interface Stage extends AnyStage {
  /** Has an e-mail address that is not verified, and `PASSWORD`. */
  readonly user: User;
  readonly userId: string;
  readonly email: string;
  readonly idToken: string;
}

const row = mutationOf<Stage>();

const keyOf = ({ tenantId, userId }: Stage) => ({ tenantId, userId });

const logIn = async ({ server, tenantId, email }: Stage) =>
  (await server.auth.loginWithPassword({ tenantId, identifier: { case: "email", value: email }, password: PASSWORD }))
    .tokens!;

const verify = ({ server, user }: Stage) => verifyContacts(server, user, { email: true });

const requestCode = (purpose: OtpPurpose) => async (stage: Stage) => {
  const { server, tenantId, email } = stage;
  const request = { tenantId, channel: OtpChannel.EMAIL, destination: email, purpose };
  const { otpId } = await server.auth.requestOtp(request);
  return { tenantId, otpId, code: await codeOf(server, otpId) };
};

const linkGoogle = async (stage: Stage) =>
  (await stage.server.auth.linkGoogleIdentity({ ...keyOf(stage), idToken: stage.idToken })).identity!;

const refreshTwice = async (stage: Stage) => {
  const { refreshToken, sessionId } = await logIn(stage);
  await stage.server.auth.refreshSession({ refreshToken });
  await stage.server.pool.query(sql.unsafe`
    UPDATE refresh_sessions SET refreshed_utc = refreshed_utc - interval '1 minute'
    WHERE session_id = ${sessionId}::uuid`);
  return { refreshToken, sessionId };
};

const ofUser = (action: string, userId: string, payload = {}) => ({
  action,
  entityKind: "user",
  entityId: userId,
  payload,
});

const ofSession = (action: string, sessionId: string | undefined, userId: string | undefined, payload = {}) => ({
  action,
  entityKind: "session",
  entityId: sessionId,
  payload: { user_id: userId, ...payload },
});

/** What a sign-in of the stage's user answers with. */
interface SignedIn {
  readonly tokens?: { readonly sessionId: string } | undefined;
}

const opened = ({ userId }: Stage, { tokens }: SignedIn, method: string) =>
  ofSession("auth.session.create", tokens?.sessionId, userId, { method });

const verified = ({ userId }: Stage) => ofUser("auth.contact.verify", userId, { fields: ["email_verified"] });

let issuer: GoogleIssuer;
beforeAll(async () => {
  issuer = await startGoogleIssuer();
});
afterAll(() => issuer.close());

const serverOf = oncePerFile((transport: TransportName) => launchForCodes(transport, issuer.env));

const plantStage = async (server: TestService, within?: { readonly tenantId: string }): Promise<Stage> => {
  const user = await addUser(server, { ...within, password: PASSWORD });
  const { tenantId, userId, email = "" } = user;
  return { server, tenantId, user, userId, email, idToken: await issuer.token({ claims: person() }) };
};

const plant = async (transport: TransportName, beside?: Stage): Promise<Stage> => {
  const server = await serverOf(transport);
  if (!beside) return plantStage(server);
  const { tenantId } = beside;
  const stage = await plantStage(server, { tenantId });
  const { userId, email } = stage;
  await logIn(stage);
  await plantWindows(server, stage.user);
  await plantCode(server, { tenantId, userId, destination: email });
  await server.org.createInvitation({ tenantId, email });
  return stage;
};

testMutations({
  service: AuthService,
  silent: ["RequestOtp"],
  plant,
  mutations: [
    row({
      rpc: "CreateUser",
      before: async () => ({ userId: randomUUID(), email: uniqueEmail(), displayName: "Ann", password: PASSWORD }),
      call: ({ server, tenantId }, user) => server.auth.createUser({ tenantId, ...user }),
      events: (_, { userId }) => [
        ofUser("auth.user.create", userId, { fields: ["email", "display_name", "password"] }),
      ],
    }),
    row({
      rpc: "ImportUsers",
      before: async () => ["Ann", "Bob"].map((displayName) => ({ email: uniqueEmail(), displayName })),
      call: ({ server, tenantId }, users) => server.auth.importUsers({ tenantId, users }),
      events: (_stage, _users, { results }) => results.map(({ userId }) => ofUser("auth.user.import", userId)),
    }),
    row({
      rpc: "UpdateUser",
      call: (stage) => stage.server.auth.updateUser({ ...keyOf(stage), displayName: "Renamed" }),
      events: ({ userId }) => [ofUser("auth.user.update", userId, { fields: ["display_name"] })],
    }),
    row({
      rpc: "DeactivateUser",
      before: logIn,
      call: (stage) => stage.server.auth.deactivateUser(keyOf(stage)),
      events: ({ userId }) => [ofUser("auth.user.deactivate", userId)],
    }),
    row({
      rpc: "ActivateUser",
      before: (stage) => stage.server.auth.deactivateUser(keyOf(stage)),
      call: (stage) => stage.server.auth.activateUser(keyOf(stage)),
      events: ({ userId }) => [ofUser("auth.user.activate", userId)],
    }),
    row({
      rpc: "EraseUser",
      before: logIn,
      call: (stage) => stage.server.auth.eraseUser(keyOf(stage)),
      events: ({ userId }) => [ofUser("auth.user.erase", userId)],
    }),
    row({
      rpc: "SetPassword",
      call: (stage) => stage.server.auth.setPassword({ ...keyOf(stage), newPassword: OTHER_PASSWORD }),
      events: ({ userId }) => [ofUser("auth.password.set", userId)],
      repeats: ["auth.password.set"],
    }),
    row({
      rpc: "ChangePassword",
      call: (stage) => {
        const change = { currentPassword: PASSWORD, newPassword: OTHER_PASSWORD };
        return stage.server.auth.changePassword({ ...keyOf(stage), ...change });
      },
      events: ({ userId }) => [ofUser("auth.password.change", userId)],
      refusesRepeats: true,
    }),
    row({
      rpc: "LinkGoogleIdentity",
      call: linkGoogle,
      events: ({ userId }, _, { identityId }) => [
        ofUser("auth.identity.link", userId, { identity_id: identityId, provider: "google" }),
      ],
    }),
    row({
      rpc: "UnlinkIdentity",
      before: linkGoogle,
      call: (stage, { identityId }) => stage.server.auth.unlinkIdentity({ ...keyOf(stage), identityId }),
      events: ({ userId }, { identityId }) => [
        ofUser("auth.identity.unlink", userId, { identity_id: identityId, provider: "google" }),
      ],
      refusesRepeats: true,
    }),
    row({
      rpc: "LoginWithPassword",
      call: logIn,
      events: (stage, _, tokens) => [opened(stage, { tokens }, "password")],
      repeats: ["auth.session.create"],
    }),
    row({
      rpc: "LoginWithGoogle",
      what: "which creates a user",
      call: async ({ server, tenantId, idToken }) => {
        const { user, tokens } = await server.auth.loginWithGoogle({ tenantId, idToken, createUser: true });
        const { identities } = await server.auth.listIdentities({ tenantId, userId: user!.userId });
        return { userId: user!.userId, identityId: identities[0]?.identityId, sessionId: tokens?.sessionId };
      },
      events: (_stage, _made, { userId, identityId, sessionId }) => [
        ofUser("auth.user.create", userId, { fields: ["email", "display_name"], method: "google" }),
        ofUser("auth.identity.link", userId, { identity_id: identityId, provider: "google" }),
        ofSession("auth.session.create", sessionId, userId, { method: "google" }),
      ],
      repeats: ["auth.session.create"],
    }),
    row({
      rpc: "LoginWithOtp",
      what: "which proves the contact",
      before: requestCode(OtpPurpose.LOGIN),
      call: ({ server }, code) => server.auth.loginWithOtp(code),
      events: (stage, _, answer) => [
        verified(stage),
        ofUser("auth.password.remove", stage.userId),
        opened(stage, answer, "code"),
      ],
      refusesRepeats: true,
    }),
    row({
      rpc: "LoginWithOtp",
      what: "of a proven contact",
      before: async (stage) => {
        await verify(stage);
        return requestCode(OtpPurpose.LOGIN)(stage);
      },
      call: ({ server }, code) => server.auth.loginWithOtp(code),
      events: (stage, _, answer) => [opened(stage, answer, "code")],
      refusesRepeats: true,
    }),
    row({
      rpc: "VerifyContact",
      before: requestCode(OtpPurpose.VERIFY_EMAIL),
      call: ({ server }, code) => server.auth.verifyContact(code),
      events: (stage) => [verified(stage)],
      refusesRepeats: true,
    }),
    row({
      rpc: "ResetPassword",
      before: requestCode(OtpPurpose.RESET_PASSWORD),
      call: ({ server }, code) => server.auth.resetPassword({ ...code, newPassword: OTHER_PASSWORD }),
      events: (stage) => [verified(stage), ofUser("auth.password.reset", stage.userId)],
      refusesRepeats: true,
    }),
    row({
      rpc: "RefreshSession",
      what: "with a token that was used before",
      before: refreshTwice,
      call: async ({ server }, { refreshToken }) => {
        const { reason, error } = await refused(server.auth.refreshSession({ refreshToken }));
        if (reason !== "SESSION_REUSED") throw error;
      },
      events: ({ userId }, { sessionId }) => [ofSession("auth.session.reuse", sessionId, userId)],
      refusesRepeats: true,
    }),
    row({
      rpc: "Logout",
      before: logIn,
      call: ({ server }, { refreshToken }) => server.auth.logout({ refreshToken }),
      events: ({ userId }, { sessionId }) => [ofSession("auth.session.revoke", sessionId, userId)],
    }),
    row({
      rpc: "RevokeSession",
      before: logIn,
      call: ({ server, tenantId }, { sessionId }) => server.auth.revokeSession({ tenantId, sessionId }),
      events: ({ userId }, { sessionId }) => [ofSession("auth.session.revoke", sessionId, userId)],
    }),
    row({
      rpc: "RevokeAllSessions",
      before: async (stage) => [await logIn(stage), await logIn(stage)],
      call: (stage) => stage.server.auth.revokeAllSessions(keyOf(stage)),
      events: ({ userId }) => [ofUser("auth.session.revoke_all", userId, { revoked_count: 2 })],
    }),
  ],
});

describe.each(transports)("%s", (transport) => {
  test("a token that is refreshed, verified or read, and a code that is asked for, record nothing", async () => {
    const stage = await plant(transport);
    const { server, tenantId, email } = stage;
    const { refreshToken, accessToken } = await logIn(stage);
    const written = await recorded(server, async () => {
      await server.auth.refreshSession({ refreshToken });
      await server.auth.verifyAccessToken({ accessToken });
      await server.auth.getUser({ tenantId, key: { case: "email", value: email } });
      await requestCode(OtpPurpose.LOGIN)(stage);
    });
    expect(written).toEqual([]);
  });
});
