import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { AuthService, OtpChannel, OtpPurpose, type User } from "../../src/gen/auth/v1/auth_pb.ts";
import { codeOf, launchForCodes } from "../support/codes.ts";
import { type GoogleIssuer, person, startGoogleIssuer } from "../support/google-issuer.ts";
import { OTHER_PASSWORD, PASSWORD } from "../support/passwords.ts";
import { recorded } from "../support/recorded.ts";
import { refused } from "../support/refusals.ts";
import { type TestService, transports } from "../support/service.ts";
import { addUser, uniqueEmail, verifyContacts } from "../support/users.ts";

interface Stage {
  readonly server: TestService;
  readonly tenantId: string;
  /** Has an e-mail address that is not verified, and `PASSWORD`. */
  readonly user: User;
  readonly userId: string;
  readonly email: string;
  readonly idToken: string;
}

interface Event {
  readonly action: string;
  readonly payload?: object;
}

/** A call that records something, after what must be there for it. */
interface Mutation<Made = unknown> {
  readonly rpc: string;
  /** Where the RPC records other things in other cases. */
  readonly what?: string;
  readonly events: readonly Event[];
  readonly before?: (stage: Stage) => Promise<Made>;
  readonly call: (stage: Stage, made: Made) => Promise<unknown>;
  readonly refusesRepeats?: true;
  /** What a repeat records: nothing unless it is named. */
  readonly repeatEvents?: readonly Event[];
}

const row = <Made>(mutation: Mutation<Made>): Mutation => mutation as Mutation;

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
  return refreshToken;
};

const opened = (method: string): Event => ({ action: "auth.session.create", payload: { method } });
const verified: Event = { action: "auth.contact.verify", payload: { fields: ["email_verified"] } };

const MUTATIONS: readonly Mutation[] = [
  row({
    rpc: "CreateUser",
    events: [{ action: "auth.user.create", payload: { fields: ["email", "display_name", "password"] } }],
    before: async () => ({ userId: randomUUID(), email: uniqueEmail(), displayName: "Ann", password: PASSWORD }),
    call: ({ server, tenantId }, user) => server.auth.createUser({ tenantId, ...user }),
  }),
  row({
    rpc: "ImportUsers",
    events: [{ action: "auth.user.import" }],
    before: async () => [{ userId: randomUUID(), email: uniqueEmail(), displayName: "Ann" }],
    call: ({ server, tenantId }, users) => server.auth.importUsers({ tenantId, users }),
  }),
  row({
    rpc: "UpdateUser",
    events: [{ action: "auth.user.update", payload: { fields: ["display_name"] } }],
    call: (stage) => stage.server.auth.updateUser({ ...keyOf(stage), displayName: "Renamed" }),
  }),
  row({
    rpc: "DeactivateUser",
    events: [{ action: "auth.user.deactivate" }],
    before: logIn,
    call: (stage) => stage.server.auth.deactivateUser(keyOf(stage)),
  }),
  row({
    rpc: "ActivateUser",
    events: [{ action: "auth.user.activate" }],
    before: (stage) => stage.server.auth.deactivateUser(keyOf(stage)),
    call: (stage) => stage.server.auth.activateUser(keyOf(stage)),
  }),
  row({
    rpc: "EraseUser",
    events: [{ action: "auth.user.erase" }],
    before: logIn,
    call: (stage) => stage.server.auth.eraseUser(keyOf(stage)),
  }),
  row({
    rpc: "SetPassword",
    events: [{ action: "auth.password.set" }],
    call: (stage) => stage.server.auth.setPassword({ ...keyOf(stage), newPassword: OTHER_PASSWORD }),
    repeatEvents: [{ action: "auth.password.set" }],
  }),
  row({
    rpc: "ChangePassword",
    events: [{ action: "auth.password.change" }],
    call: (stage) => {
      const change = { currentPassword: PASSWORD, newPassword: OTHER_PASSWORD };
      return stage.server.auth.changePassword({ ...keyOf(stage), ...change });
    },
    refusesRepeats: true,
  }),
  row({
    rpc: "LinkGoogleIdentity",
    events: [{ action: "auth.identity.link", payload: { provider: "google" } }],
    call: linkGoogle,
  }),
  row({
    rpc: "UnlinkIdentity",
    events: [{ action: "auth.identity.unlink", payload: { provider: "google" } }],
    before: linkGoogle,
    call: (stage, { identityId }) => stage.server.auth.unlinkIdentity({ ...keyOf(stage), identityId }),
    refusesRepeats: true,
  }),
  row({ rpc: "LoginWithPassword", events: [opened("password")], call: logIn, repeatEvents: [opened("password")] }),
  row({
    rpc: "LoginWithGoogle",
    what: "which creates a user",
    events: [
      { action: "auth.user.create", payload: { fields: ["email", "display_name"], method: "google" } },
      { action: "auth.identity.link", payload: { provider: "google" } },
      opened("google"),
    ],
    before: async ({ server }) => ({ tenantId: await server.addTenant(), createUser: true }),
    call: ({ server, idToken }, login) => server.auth.loginWithGoogle({ ...login, idToken }),
    repeatEvents: [opened("google")],
  }),
  row({
    rpc: "LoginWithOtp",
    what: "which proves the contact",
    events: [verified, { action: "auth.password.remove" }, opened("code")],
    before: requestCode(OtpPurpose.LOGIN),
    call: ({ server }, code) => server.auth.loginWithOtp(code),
    refusesRepeats: true,
  }),
  row({
    rpc: "LoginWithOtp",
    what: "of a proven contact",
    events: [opened("code")],
    before: async (stage) => {
      await verify(stage);
      return requestCode(OtpPurpose.LOGIN)(stage);
    },
    call: ({ server }, code) => server.auth.loginWithOtp(code),
    refusesRepeats: true,
  }),
  row({
    rpc: "VerifyContact",
    events: [verified],
    before: requestCode(OtpPurpose.VERIFY_EMAIL),
    call: ({ server }, code) => server.auth.verifyContact(code),
    refusesRepeats: true,
  }),
  row({
    rpc: "ResetPassword",
    events: [verified, { action: "auth.password.reset" }],
    before: requestCode(OtpPurpose.RESET_PASSWORD),
    call: ({ server }, code) => server.auth.resetPassword({ ...code, newPassword: OTHER_PASSWORD }),
    refusesRepeats: true,
  }),
  row({
    rpc: "RefreshSession",
    what: "with a token that was used before",
    events: [{ action: "auth.session.reuse" }],
    before: refreshTwice,
    call: ({ server }, refreshToken) => server.auth.refreshSession({ refreshToken }).catch(() => undefined),
  }),
  row({
    rpc: "Logout",
    events: [{ action: "auth.session.revoke" }],
    before: logIn,
    call: ({ server }, { refreshToken }) => server.auth.logout({ refreshToken }),
  }),
  row({
    rpc: "RevokeSession",
    events: [{ action: "auth.session.revoke" }],
    before: logIn,
    call: ({ server, tenantId }, { sessionId }) => server.auth.revokeSession({ tenantId, sessionId }),
  }),
  row({
    rpc: "RevokeAllSessions",
    events: [{ action: "auth.session.revoke_all", payload: { revoked_count: 2 } }],
    before: async (stage) => [await logIn(stage), await logIn(stage)],
    call: (stage) => stage.server.auth.revokeAllSessions(keyOf(stage)),
  }),
];

const expectRefused = async (call: Promise<unknown>) => expect((await refused(call)).reason).not.toBe("INTERNAL");

/** What changes nothing in the record's sense. */
const SILENT = /^(Get|List|BatchGet)|^VerifyAccessToken$|^RequestOtp$/;

test("every RPC that changes something is held to the table of actions", () => {
  const changing = AuthService.methods.map(({ name }) => name).filter((name) => !SILENT.test(name));
  expect([...new Set(MUTATIONS.map(({ rpc }) => rpc))]).toEqual(changing);
});

let issuer: GoogleIssuer;
beforeAll(async () => {
  issuer = await startGoogleIssuer();
});
afterAll(() => issuer.close());

describe.each(transports)("%s", (transport) => {
  let server: TestService;
  beforeAll(async () => {
    server = await launchForCodes(transport, issuer.env);
  });

  const plant = async (): Promise<Stage> => {
    const user = await addUser(server, { password: PASSWORD });
    const { tenantId, userId, email = "" } = user;
    return { server, tenantId, user, userId, email, idToken: await issuer.token({ claims: person() }) };
  };

  test.each(MUTATIONS.map((mutation) => [`${mutation.rpc} ${mutation.what ?? ""}`.trim(), mutation] as const))(
    "%s records what it changes, and a repeat what it changes again",
    async (_name, { events, before, call, refusesRepeats, repeatEvents = [] }) => {
      const stage = await plant();
      const made = await before?.(stage);
      const written = await recorded(server, () => call(stage, made));
      expect(written.map(({ action }) => action)).toEqual(events.map(({ action }) => action));
      const root = (await server.services.getService({ selector: { case: "key", value: "root" } })).service;
      for (const [index, event] of written.entries()) {
        const isOfSession = /^auth\.session\.(create|revoke|reuse)$/.test(event.action);
        expect(event).toMatchObject({
          entityKind: isOfSession ? "session" : "user",
          actorServiceId: root?.serviceId,
          payload: events[index]?.payload ?? {},
        });
        expect(event.tenantId).toBe((made as { tenantId?: string } | undefined)?.tenantId ?? stage.tenantId);
      }
      const repeated = await recorded(server, async () => {
        const again = call(stage, made);
        await (refusesRepeats ? expectRefused(again) : again);
      });
      expect(repeated.map(({ action }) => action)).toEqual(repeatEvents.map(({ action }) => action));
    },
  );

  test("a token that is refreshed, verified or read, and a code that is asked for, record nothing", async () => {
    const stage = await plant();
    const { tenantId, email } = stage;
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
