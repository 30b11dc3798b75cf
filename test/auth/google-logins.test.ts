import { type QuerySqlToken, sql } from "slonik";
import { beforeAll, describe, expect, test } from "vitest";
import { type GoogleIssuer, person } from "../support/google-issuer.ts";
import { type GoogleLogins, launchForGoogle } from "../support/google-logins.ts";
import { untilSomebodyWaits } from "../support/lock-waiters.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, transports } from "../support/service.ts";
import { linkGoogle } from "../support/user-rows.ts";
import { actionsOf, addUser, countUsers, uniqueEmail, verifyContacts } from "../support/users.ts";

const RACERS = 20;

describe.each(transports)("%s: signing in with Google", (transport) => {
  let issuer: GoogleIssuer;
  let service: TestService;
  let tenantId: string;
  let login: GoogleLogins["login"];
  let create: GoogleLogins["create"];
  let identitiesOf: GoogleLogins["identitiesOf"];
  beforeAll(async () => {
    ({ issuer, service, tenantId, login, create, identitiesOf } = await launchForGoogle(transport));
  });
  /** Changes a user, whose row is locked, while a sign-in waits for it. */
  const heldUp = async <T>(userId: string, change: QuerySqlToken, signIn: () => Promise<T>): Promise<T> => {
    const release = Promise.withResolvers<undefined>();
    const locked = Promise.withResolvers<undefined>();
    const holder = service.pool.transaction(async (tx) => {
      await tx.query(sql.unsafe`SELECT FROM users WHERE user_id = ${userId}::uuid FOR UPDATE`);
      locked.resolve(undefined);
      await release.promise;
      await tx.query(change);
    });
    await locked.promise;
    const signedIn = signIn();
    await untilSomebodyWaits(service.pool);
    release.resolve(undefined);
    const [answer] = await Promise.all([signedIn, holder]);
    return answer;
  };

  test("a known account signs its user in, whatever else Google now says of it, and changes nothing", async () => {
    const who = person();
    const { user } = await create(who);
    const later = [{ email: uniqueEmail() }, { email: undefined }, { email_verified: false }, { name: "Other" }];
    for (const claims of later) {
      const { user: same, created } = await login({ ...who, ...claims });
      expect(created).toBe(false);
      expect(same).toEqual(user);
    }
    expect((await create(who)).created).toBe(false);
    expect(await actionsOf(service, user!.userId)).toEqual(["auth.identity.link", "auth.user.create"]);
  });

  test.each([
    ["a gmail.com address", {}],
    ["an address of a hosted domain", { email: uniqueEmail(), hd: "example.com" }],
  ])("%s that our user has verified links and signs in that user", async (_name, claims) => {
    const who = person(claims);
    const user = await addUser(service, { tenantId, email: who.email });
    await verifyContacts(service, user, { email: true });
    const { user: found, created } = await create(who);
    expect(found).toMatchObject({ userId: user.userId, email: user.email });
    expect(created).toBe(false);
    expect(await identitiesOf(user.userId)).toMatchObject([{ providerSubject: who.sub, emailVerified: true }]);
    // Without the e-mail from now on: it is linked.
    expect((await login({ ...who, email: undefined })).user?.userId).toBe(user.userId);
    expect(await actionsOf(service, user.userId)).toEqual(["auth.identity.link", "auth.user.create"]);
  });

  test("an e-mail that our user has not verified is not enough: somebody else may have made that user", async () => {
    const who = person();
    const user = await addUser(service, { tenantId, email: who.email });
    await expectRefusal(create(who), "LINK_REQUIRED");
    await expectRefusal(login(who), "LINK_REQUIRED");
    expect(await identitiesOf(user.userId)).toEqual([]);
    expect((await service.auth.listSessions({ tenantId, userId: user.userId })).sessions).toEqual([]);
    await verifyContacts(service, user, { email: true });
    expect((await login(who)).user?.userId).toBe(user.userId);
  });

  test("a user who has another Google account is not signed in by a second one of the same e-mail", async () => {
    const who = person();
    const { user } = await create(who);
    await expectRefusal(create({ ...person(), email: who.email }), "INVALID_CREDENTIALS");
    expect(await identitiesOf(user!.userId)).toMatchObject([{ providerSubject: who.sub }]);
  });

  test("an inactive user is not signed in, linked or not", async () => {
    const who = person();
    const { user } = await create(who);
    await service.auth.deactivateUser({ tenantId, userId: user!.userId });
    await expectRefusal(create(who), "INVALID_CREDENTIALS");
    await service.auth.activateUser({ tenantId, userId: user!.userId });
    expect((await login(who)).user?.userId).toBe(user!.userId);

    const other = person();
    const unlinked = await addUser(service, { tenantId, email: other.email });
    await service.auth.deactivateUser({ tenantId, userId: unlinked.userId });
    await expectRefusal(create(other), "INVALID_CREDENTIALS");
    await verifyContacts(service, unlinked, { email: true });
    await expectRefusal(create(other), "INVALID_CREDENTIALS");
    expect(await identitiesOf(unlinked.userId)).toEqual([]);
  });

  test("an account that was unlinked is a stranger again", async () => {
    const who = person({ email: uniqueEmail(), hd: "example.com" });
    const { user } = await create(who);
    const [identity] = await identitiesOf(user!.userId);
    await service.auth.unlinkIdentity({ tenantId, userId: user!.userId, identityId: identity!.identityId });
    await expectRefusal(login({ ...who, hd: undefined }), "INVALID_CREDENTIALS");
    expect((await login(who)).user?.userId).toBe(user!.userId);
  });

  test("the same account in another tenant is another user", async () => {
    const who = person();
    const other = await service.addTenant();
    const { user } = await create(who);
    await expectRefusal(login(who, { tenantId: other }), "INVALID_CREDENTIALS");
    const { user: there, created } = await create(who, { tenantId: other });
    expect(created).toBe(true);
    expect(there!.userId).not.toBe(user!.userId);
    expect(await identitiesOf(there!.userId, other)).toMatchObject([{ providerSubject: who.sub }]);
    expect((await login(who)).user?.userId).toBe(user!.userId);
    expect((await login(who, { tenantId: other.toUpperCase() })).user?.userId).toBe(there!.userId);
  });

  test("an unknown tenant is not found, and a suspended one takes nobody in", async () => {
    const who = person();
    const unknown = "018f0000-0000-7000-8000-000000000000";
    await expectRefusal(create(who, { tenantId: unknown }), "TENANT_NOT_FOUND");
    const suspended = await service.addTenant();
    await create(who, { tenantId: suspended });
    await service.org.suspendTenant({ tenantId: suspended });
    await expectRefusal(create(who, { tenantId: suspended }), "TENANT_SUSPENDED");
    await expectRefusal(create(person(), { tenantId: suspended }), "TENANT_SUSPENDED");
    expect(await countUsers(service, suspended)).toBe(1);
    await service.org.activateTenant({ tenantId: suspended });
    expect((await create(who, { tenantId: suspended })).created).toBe(false);
  });

  test("only a caller who may log users in, in this tenant, and with an address that is one", async () => {
    const who = person();
    const idToken = await issuer.token({ claims: who });
    const other = await service.addService(["auth.login"], await service.addTenant());
    await expectRefusal(other.auth.loginWithGoogle({ tenantId, idToken }), "TENANT_MISMATCH");
    const reader = await service.addService(["auth.user.*"]);
    await expectRefusal(reader.auth.loginWithGoogle({ tenantId, idToken }), "PERMISSION_MISSING");
    const { fields } = await expectRefusal(create(who, { client: { ip: "localhost" } }), "INVALID_REQUEST");
    expect(fields).toEqual(["client.ip"]);
    const own = await service.addService(["auth.login"], tenantId);
    expect((await own.auth.loginWithGoogle({ tenantId, idToken, createUser: true })).created).toBe(true);
  });

  test.each([
    [
      "deactivated",
      (userId: string) => sql.unsafe`UPDATE users SET user_state_code = 'inactive' WHERE user_id = ${userId}::uuid`,
    ],
    ["unlinked", (userId: string) => sql.unsafe`DELETE FROM user_identities WHERE user_id = ${userId}::uuid`],
  ])("who is %s while a sign-in waits is not signed in", async (_how, change) => {
    const who = person({ email: uniqueEmail(), hd: "example.com" });
    const { userId } = (await create(who)).user!;
    await expectRefusal(
      heldUp(userId, change(userId), () => login({ ...who, hd: undefined })),
      "INVALID_CREDENTIALS",
    );
    expect((await service.auth.listSessions({ tenantId, userId })).sessions).toHaveLength(1);
  });

  test("whose e-mail passes to somebody else while a sign-in waits is not linked", async () => {
    const who = person();
    const before = await addUser(service, { tenantId, email: who.email });
    await verifyContacts(service, before, { email: true });
    const { userId } = before;
    const change = sql.unsafe`UPDATE users SET email_addr = ${uniqueEmail()} WHERE user_id = ${userId}::uuid`;
    const { user, created } = await heldUp(userId, change, () => create(who));
    expect(created).toBe(true);
    expect(user!.userId).not.toBe(userId);
    expect(await identitiesOf(userId)).toEqual([]);
  });

  test("an account that is linked to another user while its first sign-in waits signs that user in", async () => {
    const who = person();
    const owner = await addUser(service, { tenantId, email: who.email });
    await verifyContacts(service, owner, { email: true });
    const { userId } = await addUser(service, { tenantId });
    const { user } = await heldUp(owner.userId, linkGoogle({ userId }, tenantId, who.sub), () => create(who));
    expect(user!.userId).toBe(userId);
    expect(await identitiesOf(owner.userId)).toEqual([]);
  });

  test("no session outlives a deactivation or an unlinking that came at the same time", async () => {
    const who = person({ email: uniqueEmail(), hd: "example.com" });
    const { user } = await create(who);
    const { userId } = user!;
    const [identity] = await identitiesOf(userId);
    const claims = { ...who, hd: undefined };
    const many = () => Array.from({ length: RACERS }, () => login(claims));
    await Promise.allSettled([...many(), service.auth.deactivateUser({ tenantId, userId }), ...many()]);
    expect((await service.auth.listSessions({ tenantId, userId })).sessions).toEqual([]);

    await service.auth.activateUser({ tenantId, userId });
    const again = Promise.allSettled(many());
    await service.auth.unlinkIdentity({ tenantId, userId, identityId: identity!.identityId });
    for (const outcome of await again) {
      if (outcome.status === "rejected") {
        await expectRefusal(Promise.reject(outcome.reason as Error), "INVALID_CREDENTIALS");
      }
    }
    await expectRefusal(login(claims), "INVALID_CREDENTIALS");
  });
});
