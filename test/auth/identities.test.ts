import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { IdentityProvider, type User } from "../../src/gen/auth/v1/auth_pb.ts";
import { productionEnv } from "../support/production.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, launchForFile, startService, transports } from "../support/service.ts";
import { actionsOf, addUser, eventsOf, uniquePhone, verifyContacts } from "../support/users.ts";

const PASSWORD = "correct horse battery";

/** Links an identity as a login or an import would; answers with its id. */
const plantIdentity = async (
  { pool }: TestService,
  { tenantId, userId }: User,
  provider: "password" | "google" = "google",
  opens = true,
): Promise<string> => {
  const identityId = randomUUID();
  const isGoogle = provider === "google";
  await pool.query(sql.unsafe`
    INSERT INTO user_identities (ident_id, user_id, ident_provider_code, provider_subject_key, password_hash_text,
      email_verified_flag, created_utc)
    VALUES (${identityId}::uuid, ${userId}::uuid, ${provider}, ${isGoogle && opens ? `${tenantId}:g-${identityId}` : null},
      ${!isGoogle && opens ? "$argon2id$" : null}, ${isGoogle}, now() + interval '1 minute')`);
  return identityId;
};

const keyOf = ({ tenantId, userId }: User) => ({ tenantId, userId });

const identitiesOf = async ({ auth }: TestService, user: User) =>
  (await auth.listIdentities(keyOf(user))).identities.map(({ identityId }) => identityId);

const TWILIO = { TWILIO_ACCOUNT_SID: `AC${"0".repeat(32)}`, TWILIO_AUTH_TOKEN: "token" };

describe.each(transports)("%s", (transport) => {
  test("identities are listed as their providers gave them, the first linked first", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { password: PASSWORD });
    const google = await plantIdentity(server, user);
    const { identities } = await server.auth.listIdentities(keyOf(user));
    expect(identities).toMatchObject([
      { userId: user.userId, provider: IdentityProvider.PASSWORD, emailVerified: false, phoneVerified: false },
      {
        identityId: google,
        provider: IdentityProvider.GOOGLE,
        providerSubject: `g-${google}`,
        emailVerified: true,
        phoneVerified: false,
      },
    ]);
    expect(identities[0]?.providerSubject).toBeUndefined();
    await server.pool.query(sql.unsafe`
      UPDATE user_identities SET created_utc = created_utc - interval '1 day' WHERE ident_id = ${google}::uuid`);
    expect(await identitiesOf(server, user)).toEqual([google, identities[0]!.identityId]);
    expect((await server.auth.listIdentities(keyOf(await addUser(server)))).identities).toEqual([]);
  });

  test("an unlinked identity is gone, with an event that names it", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { password: PASSWORD });
    const google = await plantIdentity(server, user);
    const [password = ""] = await identitiesOf(server, user);
    await server.auth.unlinkIdentity({ ...keyOf(user), identityId: password.toUpperCase() });
    expect(await identitiesOf(server, user)).toEqual([google]);
    const [event] = await eventsOf(server, user.userId);
    expect(event).toMatchObject({ action: "auth.identity.unlink", entityKind: "user", tenantId: user.tenantId });
    expect(event?.payload).toMatchObject({ identity_id: password, provider: "password" });
    await expectRefusal(server.auth.unlinkIdentity({ ...keyOf(user), identityId: password }), "IDENTITY_NOT_FOUND");
    expect(await actionsOf(server, user.userId)).toEqual(["auth.identity.unlink", "auth.user.create"]);
  });

  test("the last way in stays", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { phone: uniquePhone() });
    const google = await plantIdentity(server, user);
    await expectRefusal(server.auth.unlinkIdentity({ ...keyOf(user), identityId: google }), "LAST_IDENTITY");
    // A password identity that has no password, as a bulk load may make it, opens nothing.
    const empty = await plantIdentity(server, user, "password", false);
    await expectRefusal(server.auth.unlinkIdentity({ ...keyOf(user), identityId: google }), "LAST_IDENTITY");
    expect(await identitiesOf(server, user)).toEqual(expect.arrayContaining([google, empty]));
    expect(await actionsOf(server, user.userId)).toEqual(["auth.user.create"]);
    await server.auth.unlinkIdentity({ ...keyOf(user), identityId: empty });
  });

  test.each([{ email: true }, { phone: true }])(
    "it goes where a code is a way in, to a verified %j",
    async (verified) => {
      const server = await startService(transport);
      const user = await addUser(server, { email: `${randomUUID()}@a.example`, phone: uniquePhone() });
      const google = await plantIdentity(server, user);
      await verifyContacts(server, user, verified);
      await server.auth.unlinkIdentity({ ...keyOf(user), identityId: google });
      expect(await identitiesOf(server, user)).toEqual([]);
    },
  );

  test.each([
    ["e-mails", { SMTP_URL: "smtp://127.0.0.1:1", MAIL_FROM: "auth@example.com" }, "phone", "email"],
    ["SMS", { ...TWILIO, TWILIO_FROM: "+14155550100" }, "email", "phone"],
    ["WhatsApp messages", { ...TWILIO, TWILIO_WHATSAPP_FROM: "+14155550100" }, "email", "phone"],
  ] as const)("it stays where nothing sends a code to what is verified, but %s", async (_, env, unreached, reached) => {
    const server = await launchForFile(transport, { env: { ...productionEnv(), ...env } });
    const user = await addUser(server, { email: `${randomUUID()}@a.example`, phone: uniquePhone() });
    const google = await plantIdentity(server, user);
    const unlink = () => server.auth.unlinkIdentity({ ...keyOf(user), identityId: google });
    await verifyContacts(server, user, { [unreached]: true });
    await expectRefusal(unlink(), "LAST_IDENTITY");
    await verifyContacts(server, user, { [reached]: true });
    await unlink();
  });

  test("of two that unlink a user's two last identities at once exactly one wins, for ten users at once", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const users = await Promise.all(Array.from({ length: 10 }, () => addUser(server, { tenantId })));
    const unlinks = await Promise.all(
      users.map(async (user) => {
        const both = [await plantIdentity(server, user), await plantIdentity(server, user, "password")];
        return () => both.map((identityId) => server.auth.unlinkIdentity({ ...keyOf(user), identityId }));
      }),
    );
    await Promise.all(unlinks.map((unlink) => Promise.allSettled(unlink())));
    for (const user of users) {
      expect(await identitiesOf(server, user)).toHaveLength(1);
      expect(await actionsOf(server, user.userId)).toEqual(["auth.identity.unlink", "auth.user.create"]);
    }
  });

  test("of an unlinked identity and a changed contact at once, the user keeps a way in", async () => {
    const server = await startService(transport);
    for (let round = 0; round < 10; round++) {
      const user = await addUser(server, { email: `${randomUUID()}@a.example`, phone: uniquePhone() });
      const google = await plantIdentity(server, user);
      await verifyContacts(server, user, { email: true });
      await Promise.allSettled([
        server.auth.unlinkIdentity({ ...keyOf(user), identityId: google }),
        server.auth.updateUser({ ...keyOf(user), updateMask: { paths: ["email"] } }),
        server.auth.updateUser({ ...keyOf(user), updateMask: { paths: ["phone"] } }),
      ]);
      const { user: after } = await server.auth.getUser({
        tenantId: user.tenantId,
        key: { case: "userId", value: user.userId },
      });
      // Without an identity a code is the way in: to whichever contact is left.
      expect([after?.email, after?.phone].filter((contact) => contact !== undefined)).toHaveLength(1);
    }
  });

  test("an identity of another user, of another tenant's or of none is not found", async () => {
    const server = await startService(transport);
    const [user, other] = [
      await addUser(server, { password: PASSWORD }),
      await addUser(server, { password: PASSWORD }),
    ];
    const [own = ""] = await identitiesOf(server, user);
    const [foreign = ""] = await identitiesOf(server, other);
    for (const identityId of [foreign, randomUUID()]) {
      const unlink = server.auth.unlinkIdentity({ ...keyOf(user), identityId });
      expect((await expectRefusal(unlink, "IDENTITY_NOT_FOUND")).metadata).toMatchObject({ identity_id: identityId });
    }
    for (const unknown of [
      { ...keyOf(user), tenantId: other.tenantId },
      { ...keyOf(user), userId: randomUUID() },
    ]) {
      await expectRefusal(server.auth.unlinkIdentity({ ...unknown, identityId: own }), "USER_NOT_FOUND");
      const { metadata } = await expectRefusal(server.auth.listIdentities(unknown), "USER_NOT_FOUND");
      expect(metadata).toMatchObject({ user_id: unknown.userId });
    }
    await expectRefusal(server.auth.unlinkIdentity({ ...keyOf(user), identityId: "x" }), "INVALID_REQUEST");
    await expectRefusal(server.auth.listIdentities({ ...keyOf(user), userId: "x" }), "INVALID_REQUEST");
  });

  test("an erased user has no identities", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { password: PASSWORD });
    const [identityId = ""] = await identitiesOf(server, user);
    await server.auth.eraseUser(keyOf(user));
    expect(await identitiesOf(server, user)).toEqual([]);
    await expectRefusal(server.auth.unlinkIdentity({ ...keyOf(user), identityId }), "IDENTITY_NOT_FOUND");
  });
});
