import { type QuerySqlToken, sql } from "slonik";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { IdentityProvider, UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { type GoogleIssuer, person, startGoogleIssuer } from "../support/google-issuer.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, launchService, transports } from "../support/service.ts";
import { actionsOf, addUser, eventsOf, uniqueEmail, verifyContacts } from "../support/users.ts";

const RACERS = 20;

describe.each(transports)("%s: signing in with Google", (transport) => {
  let issuer: GoogleIssuer;
  let service: TestService;
  let tenantId: string;
  beforeAll(async () => {
    issuer = await startGoogleIssuer();
    service = await launchService(transport, { env: issuer.env });
  });
  afterAll(async () => {
    await service.stop();
    await issuer.close();
  });
  beforeAll(async () => {
    tenantId = await service.addTenant();
  });

  interface LoginOptions {
    readonly createUser?: boolean;
    readonly tenantId?: string;
    readonly client?: { readonly ip?: string; readonly userAgent?: string };
  }
  const login = async (claims: object, options: LoginOptions = {}) =>
    service.auth.loginWithGoogle({ tenantId, idToken: await issuer.token({ claims: { ...claims } }), ...options });
  const create = (claims: object, options: LoginOptions = {}) => login(claims, { createUser: true, ...options });
  const identitiesOf = async (userId: string, tenant = tenantId) =>
    (await service.auth.listIdentities({ tenantId: tenant, userId })).identities;
  const countUsers = async (tenant: string) =>
    Number(
      (
        await service.pool.one(sql.type(z.object({ users: z.bigint() }))`
          SELECT count(*) AS users FROM users WHERE tenant_id = ${tenant}::uuid`)
      ).users,
    );
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
    const isWaiting = () =>
      service.pool.exists(sql.unsafe`
        SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`);
    await expect.poll(isWaiting, { interval: 10, timeout: 10_000 }).toBe(true);
    release.resolve(undefined);
    await holder;
    return signedIn;
  };
  const isActive = async (accessToken: string) => (await service.auth.verifyAccessToken({ accessToken })).active;

  test("a new person gets a user with the e-mail verified, a linked identity and a session", async () => {
    const who = person({ email: ` Grace.Hopper@GMAIL.com `, name: "Grace Hopper" });
    const client = { ip: "192.0.2.7", userAgent: "Navigator" };
    const { user, tokens, created } = await create(who, { client });
    expect(created).toBe(true);
    expect(user).toMatchObject({
      tenantId,
      email: "grace.hopper@gmail.com",
      emailVerified: true,
      displayName: "Grace Hopper",
      state: UserState.ACTIVE,
    });
    expect((await service.auth.getUser({ tenantId, key: { case: "userId", value: user!.userId } })).user).toEqual(user);
    expect(await identitiesOf(user!.userId)).toMatchObject([
      { provider: IdentityProvider.GOOGLE, providerSubject: who.sub, emailVerified: true, phoneVerified: false },
    ]);
    expect(await isActive(tokens!.accessToken)).toBe(true);
    const { sessions } = await service.auth.listSessions({ tenantId, userId: user!.userId });
    expect(sessions).toMatchObject([{ sessionId: tokens!.sessionId, client }]);

    const [linked, made] = await eventsOf(service, user!.userId);
    const [identity] = await identitiesOf(user!.userId);
    expect(made).toMatchObject({ action: "auth.user.create", payload: { fields: ["email", "display_name"] } });
    expect(linked).toMatchObject({
      action: "auth.identity.link",
      payload: { identity_id: identity!.identityId, provider: "google" },
    });
    const [opened] = await eventsOf(service, tokens!.sessionId);
    expect(opened).toMatchObject({ action: "auth.session.create", payload: { method: "google" } });
    const payloads = JSON.stringify([linked, made, opened].map((event) => event!.payload));
    expect(payloads).not.toMatch(new RegExp(`${who.sub}|hopper`, "i"));
  });

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

  test.each([
    ["an unverified e-mail", { email_verified: false }],
    ["an e-mail said to be unverified by a string", { email_verified: "false" }],
    ["an e-mail of which nothing is said", { email_verified: undefined }],
    ["a verified e-mail that is neither Gmail's nor of a hosted domain", { email: uniqueEmail() }],
    ["an unverified e-mail of a hosted domain", { email: uniqueEmail(), hd: "example.com", email_verified: false }],
    ["an empty hosted domain", { email: uniqueEmail(), hd: "" }],
    ["an e-mail that only looks like Gmail's", { email: `a-${uniqueEmail()}.gmail.com` }],
    [
      "an e-mail of a domain that ends in Gmail's name",
      { email: uniqueEmail().replace("example.com", "evilgmail.com") },
    ],
  ])("%s neither finds nor makes a user", async (_name, claims) => {
    const who = person(claims);
    const users = await countUsers(tenantId);
    await expectRefusal(create(who), "INVALID_CREDENTIALS");
    expect(await countUsers(tenantId)).toBe(users);
    const user = await addUser(service, { tenantId, email: who.email });
    await verifyContacts(service, user, { email: true });
    await expectRefusal(create(who), "INVALID_CREDENTIALS");
    expect(await identitiesOf(user.userId)).toEqual([]);
  });

  test.each([
    ["no e-mail", { email: undefined, hd: "example.com" }],
    ["what is no e-mail", { email: "@gmail.com" }],
  ])("%s makes no user", async (_name, claims) => {
    const users = await countUsers(tenantId);
    await expectRefusal(create(person(claims)), "INVALID_CREDENTIALS");
    expect(await countUsers(tenantId)).toBe(users);
  });

  test("nobody is created unless the request says so", async () => {
    const who = person();
    const users = await countUsers(tenantId);
    await expectRefusal(login(who), "INVALID_CREDENTIALS");
    await expectRefusal(login(who, { createUser: false }), "INVALID_CREDENTIALS");
    expect(await countUsers(tenantId)).toBe(users);
    expect((await create(who)).created).toBe(true);
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

  test("an erased user is forgotten: the account makes a new one", async () => {
    const who = person();
    const { user } = await create(who);
    await service.auth.eraseUser({ tenantId, userId: user!.userId });
    await expectRefusal(login(who), "INVALID_CREDENTIALS");
    const { user: another, created } = await create(who);
    expect(created).toBe(true);
    expect(another!.userId).not.toBe(user!.userId);
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
    expect(await countUsers(suspended)).toBe(1);
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
    ["as it is", "Zoë 😀 O'Neill", "Zoë 😀 O'Neill"],
    ["in one line, without control characters", "  Ada\u0000\u0007\n Lovelace\u0085", "Ada Lovelace"],
    ["cut between two characters", "😀".repeat(300), "😀".repeat(200)],
    ["cut before a space", `${"x".repeat(199)} y`, "x".repeat(199)],
    ["well-formed", "half \ud83d", "half \ufffd"],
    ["left out where nothing is left", " \u0000 ", undefined],
    ["left out where it is empty", "", undefined],
    ["left out where there is none", undefined, undefined],
  ])("the display name is Google's name, %s", async (_how, name, displayName) => {
    const { user } = await create(person({ name }));
    expect(user?.displayName).toBe(displayName);
  });

  test(`of ${RACERS} first sign-ins of one account at once all are answered, by one user with one identity`, async () => {
    const who = person();
    const users = await countUsers(tenantId);
    const answers = await Promise.all(Array.from({ length: RACERS }, () => create(who)));
    expect(new Set(answers.map(({ user }) => user!.userId)).size).toBe(1);
    expect(answers.filter(({ created }) => created)).toHaveLength(1);
    expect(await countUsers(tenantId)).toBe(users + 1);
    const userId = answers[0]!.user!.userId;
    expect(await identitiesOf(userId)).toHaveLength(1);
    expect(await actionsOf(service, userId)).toEqual(["auth.identity.link", "auth.user.create"]);
    expect((await service.auth.listSessions({ tenantId, userId })).sessions).toHaveLength(RACERS);
  });

  test(`of ${RACERS} first sign-ins of one account by as many e-mails at once one user is left`, async () => {
    const { sub } = person();
    const users = await countUsers(tenantId);
    const answers = await Promise.all(Array.from({ length: RACERS }, () => create(person({ sub }))));
    expect(new Set(answers.map(({ user }) => user!.userId)).size).toBe(1);
    expect(answers.filter(({ created }) => created)).toHaveLength(1);
    expect(await countUsers(tenantId)).toBe(users + 1);
    expect(await actionsOf(service, answers[0]!.user!.userId)).toEqual(["auth.identity.link", "auth.user.create"]);
  });

  test(`of ${RACERS} accounts with one e-mail at once exactly one gets the user`, async () => {
    const { email } = person();
    const settled = await Promise.allSettled(Array.from({ length: RACERS }, () => create(person({ email }))));
    expect(settled.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    const { user } = await service.auth.getUser({ tenantId, key: { case: "email", value: email } });
    expect(await identitiesOf(user!.userId)).toHaveLength(1);
  });

  test("a first sign-in and a CreateUser of one e-mail at once leave one user, by whoever came first", async () => {
    const outcomes = await Promise.all(
      Array.from({ length: RACERS }, async () => {
        const who = person();
        const [signedIn, made] = await Promise.allSettled([
          create(who),
          service.auth.createUser({ tenantId, email: who.email }),
        ]);
        if (made.status === "fulfilled") await expectRefusal(create(who), "LINK_REQUIRED");
        else await expectRefusal(Promise.reject(made.reason as Error), "EMAIL_TAKEN");
        if (signedIn.status === "rejected") {
          await expectRefusal(Promise.reject(signedIn.reason as Error), "LINK_REQUIRED");
        }
        return [signedIn.status, made.status].filter((status) => status === "fulfilled").length;
      }),
    );
    expect(outcomes).toEqual(Array.from({ length: RACERS }, () => 1));
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
    const again = many();
    await service.auth.unlinkIdentity({ tenantId, userId, identityId: identity!.identityId });
    for (const outcome of await Promise.allSettled(again)) {
      if (outcome.status === "rejected") {
        await expectRefusal(Promise.reject(outcome.reason as Error), "INVALID_CREDENTIALS");
      }
    }
    await expectRefusal(login(claims), "INVALID_CREDENTIALS");
  });
});
