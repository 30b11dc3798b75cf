import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { IdentityProvider } from "../../src/gen/auth/v1/auth_pb.ts";
import { type GoogleIssuer, person, startGoogleIssuer } from "../support/google-issuer.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, launchService, transports } from "../support/service.ts";
import { linkGoogle } from "../support/user-rows.ts";
import { actionsOf, addUser, uniqueEmail, uniquePhone } from "../support/users.ts";

const RACERS = 20;

describe.each(transports)("%s: linking a Google account", (transport) => {
  let issuer: GoogleIssuer;
  let service: TestService;
  let tenantId: string;
  beforeAll(async () => {
    issuer = await startGoogleIssuer();
    service = await launchService(transport, { env: issuer.env });
    tenantId = await service.addTenant();
  });
  afterAll(async () => {
    await service.stop();
    await issuer.close();
  });

  const link = async (userId: string, claims: object, tenant = tenantId) =>
    (
      await service.auth.linkGoogleIdentity({
        tenantId: tenant,
        userId,
        idToken: await issuer.token({ claims: { ...claims } }),
      })
    ).identity!;
  const login = async (claims: object) =>
    service.auth.loginWithGoogle({ tenantId, idToken: await issuer.token({ claims: { ...claims } }) });
  const identitiesOf = async (userId: string) => (await service.auth.listIdentities({ tenantId, userId })).identities;
  const linksOf = async (userId: string) =>
    (await actionsOf(service, userId)).filter((action) => action === "auth.identity.link").length;

  test("answers the identity, which signs the user in from then on", async () => {
    const { userId } = await addUser(service, { tenantId, phone: uniquePhone() });
    const who = person();
    const identity = await link(userId, who);
    expect(identity).toMatchObject({
      userId,
      provider: IdentityProvider.GOOGLE,
      providerSubject: who.sub,
      emailVerified: true,
      phoneVerified: false,
    });
    expect(await identitiesOf(userId)).toEqual([identity]);
    const { user } = await login(who);
    expect(user?.userId).toBe(userId);
    // The identity's flag is Google's claim; it makes no contact of the user's.
    expect(user).toMatchObject({ emailVerified: false });
    expect(user?.email).toBeUndefined();
  });

  test("is how an account gets in whose e-mail proves nothing", async () => {
    const who = person({ email: uniqueEmail(), email_verified: false });
    const { userId } = await addUser(service, { tenantId, email: who.email });
    await expectRefusal(login(who), "INVALID_CREDENTIALS");
    expect(await link(userId, who)).toMatchObject({ emailVerified: false });
    expect((await login(who)).user?.userId).toBe(userId);
  });

  test("again answers the same identity and writes nothing, though the claims differ", async () => {
    const { userId } = await addUser(service, { tenantId });
    const who = person();
    const identity = await link(userId, who);
    expect(await link(userId.toUpperCase(), { ...who, email_verified: false }, tenantId.toUpperCase())).toEqual(
      identity,
    );
    expect(await linksOf(userId)).toBe(1);
  });

  test("that another user has, or to a user who has another, is refused", async () => {
    const [one, two] = [await addUser(service, { tenantId }), await addUser(service, { tenantId })];
    const [first, second] = [person(), person()];
    await link(one.userId, first);
    await expectRefusal(link(two.userId, first), "IDENTITY_TAKEN");
    await expectRefusal(link(one.userId, second), "IDENTITY_TAKEN");
    expect(await identitiesOf(one.userId)).toMatchObject([{ providerSubject: first.sub }]);
    expect(await identitiesOf(two.userId)).toEqual([]);
    expect((await login(first)).user?.userId).toBe(one.userId);
    // Once it is let go of, it is free.
    const [identity] = await identitiesOf(one.userId);
    await service.auth.setPassword({ tenantId, userId: one.userId, newPassword: "correct horse battery" });
    await service.auth.unlinkIdentity({ tenantId, userId: one.userId, identityId: identity!.identityId });
    await link(two.userId, first);
    expect((await login(first)).user?.userId).toBe(two.userId);
  });

  test("to users of two tenants makes two identities", async () => {
    const who = person();
    const { userId } = await addUser(service, { tenantId });
    const other = await addUser(service);
    await link(userId, who);
    expect(await link(other.userId, who, other.tenantId)).toMatchObject({ providerSubject: who.sub });
    expect((await login(who)).user?.userId).toBe(userId);
  });

  test("needs a user of the tenant, who is not erased", async () => {
    const other = await addUser(service);
    for (const userId of [randomUUID(), other.userId]) {
      const { metadata } = await expectRefusal(link(userId, person()), "USER_NOT_FOUND");
      expect(metadata.user_id).toBe(userId);
    }
    const { userId } = await addUser(service, { tenantId });
    await service.auth.eraseUser({ tenantId, userId });
    await expectRefusal(link(userId, person()), "USER_ERASED");
    expect(await identitiesOf(userId)).toEqual([]);
  });

  test("to an inactive user, or in a suspended tenant, is administration and lets nobody in", async () => {
    const who = person();
    const { userId } = await addUser(service, { tenantId });
    await service.auth.deactivateUser({ tenantId, userId });
    await link(userId, who);
    await expectRefusal(login(who), "INVALID_CREDENTIALS");
    const suspended = await addUser(service);
    await service.org.suspendTenant({ tenantId: suspended.tenantId });
    await link(suspended.userId, person(), suspended.tenantId);
  });

  test("is for callers who may write users of this tenant", async () => {
    const { userId } = await addUser(service, { tenantId });
    const request = { tenantId, userId, idToken: await issuer.token() };
    const gate = await service.addService(["auth.login", "auth.user.read"]);
    await expectRefusal(gate.auth.linkGoogleIdentity(request), "PERMISSION_MISSING");
    const other = await service.addService(["auth.user.write"], await service.addTenant());
    await expectRefusal(other.auth.linkGoogleIdentity(request), "TENANT_MISMATCH");
    expect(await identitiesOf(userId)).toEqual([]);
  });

  test(`${RACERS} times at once makes one identity`, async () => {
    const { userId } = await addUser(service, { tenantId });
    const who = person();
    const answers = await Promise.all(Array.from({ length: RACERS }, () => link(userId, who)));
    for (const identity of answers) expect(identity).toEqual(answers[0]);
    expect(await linksOf(userId)).toBe(1);
  });

  test(`to ${RACERS} users at once, and of ${RACERS} accounts to one user, has exactly one winner`, async () => {
    const who = person();
    const users = await Promise.all(Array.from({ length: RACERS }, () => addUser(service, { tenantId })));
    const toMany = await Promise.allSettled(users.map(({ userId }) => link(userId, who)));
    const { userId } = await addUser(service, { tenantId });
    const toOne = await Promise.allSettled(Array.from({ length: RACERS }, () => link(userId, person())));
    for (const outcomes of [toMany, toOne]) {
      expect(outcomes.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      for (const outcome of outcomes) {
        if (outcome.status === "rejected") {
          await expectRefusal(Promise.reject(outcome.reason as Error), "IDENTITY_TAKEN");
        }
      }
    }
  });

  test("and a first sign-in of it at once leave one identity, and every try answered", async () => {
    const who = person();
    const { userId } = await addUser(service, { tenantId, phone: uniquePhone() });
    const logins = Array.from({ length: RACERS }, async () =>
      service.auth.loginWithGoogle({ tenantId, idToken: await issuer.token({ claims: who }), createUser: true }),
    );
    const [linked, ...signedIn] = await Promise.allSettled([link(userId, who), ...logins]);
    expect(signedIn.every(({ status }) => status === "fulfilled")).toBe(true);
    if (linked.status === "rejected") {
      await expectRefusal(Promise.reject(linked.reason as Error), "IDENTITY_TAKEN");
    }
    const owner = (await login(who)).user!;
    expect(owner.userId === userId).toBe(linked.status === "fulfilled");
    expect(await linksOf(owner.userId)).toBe(1);
  });

  test("an identity that a bulk load has under another tenant's key lets nobody in", async () => {
    const who = person();
    const other = await addUser(service);
    await service.pool.query(linkGoogle(other, tenantId, who.sub));
    await expectRefusal(login(who), "INVALID_CREDENTIALS");
  });
});
