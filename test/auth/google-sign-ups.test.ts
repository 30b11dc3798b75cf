import { beforeAll, describe, expect, test } from "vitest";
import { IdentityProvider, UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { person } from "../support/google-issuer.ts";
import { type GoogleLogins, launchForGoogle } from "../support/google-logins.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, transports } from "../support/service.ts";
import { actionsOf, addUser, countUsers, eventsOf, uniqueEmail, verifyContacts } from "../support/users.ts";

const RACERS = 20;

describe.each(transports)("%s: signing up with Google", (transport) => {
  let service: TestService;
  let tenantId: string;
  let login: GoogleLogins["login"];
  let create: GoogleLogins["create"];
  let identitiesOf: GoogleLogins["identitiesOf"];
  beforeAll(async () => {
    ({ service, tenantId, login, create, identitiesOf } = await launchForGoogle(transport));
  });
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
    const users = await countUsers(service, tenantId);
    await expectRefusal(create(who), "INVALID_CREDENTIALS");
    expect(await countUsers(service, tenantId)).toBe(users);
    const user = await addUser(service, { tenantId, email: who.email });
    await verifyContacts(service, user, { email: true });
    await expectRefusal(create(who), "INVALID_CREDENTIALS");
    expect(await identitiesOf(user.userId)).toEqual([]);
  });

  test.each([
    ["no e-mail", { email: undefined, hd: "example.com" }],
    ["what is no e-mail", { email: "@gmail.com" }],
  ])("%s makes no user", async (_name, claims) => {
    const users = await countUsers(service, tenantId);
    await expectRefusal(create(person(claims)), "INVALID_CREDENTIALS");
    expect(await countUsers(service, tenantId)).toBe(users);
  });

  test("nobody is created unless the request says so", async () => {
    const who = person();
    const users = await countUsers(service, tenantId);
    await expectRefusal(login(who), "INVALID_CREDENTIALS");
    await expectRefusal(login(who, { createUser: false }), "INVALID_CREDENTIALS");
    expect(await countUsers(service, tenantId)).toBe(users);
    expect((await create(who)).created).toBe(true);
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
    const fields = displayName === undefined ? ["email"] : ["email", "display_name"];
    expect((await eventsOf(service, user!.userId)).at(-1)?.payload).toMatchObject({ fields });
  });

  test(`of ${RACERS} first sign-ins of one account at once all are answered, by one user with one identity`, async () => {
    const who = person();
    const users = await countUsers(service, tenantId);
    const answers = await Promise.all(Array.from({ length: RACERS }, () => create(who)));
    expect(new Set(answers.map(({ user }) => user!.userId)).size).toBe(1);
    expect(answers.filter(({ created }) => created)).toHaveLength(1);
    expect(await countUsers(service, tenantId)).toBe(users + 1);
    const userId = answers[0]!.user!.userId;
    expect(await identitiesOf(userId)).toHaveLength(1);
    expect(await actionsOf(service, userId)).toEqual(["auth.identity.link", "auth.user.create"]);
    expect((await service.auth.listSessions({ tenantId, userId })).sessions).toHaveLength(RACERS);
  });

  test(`of ${RACERS} first sign-ins of one account by as many e-mails at once one user is left`, async () => {
    const { sub } = person();
    const users = await countUsers(service, tenantId);
    const answers = await Promise.all(Array.from({ length: RACERS }, () => create(person({ sub }))));
    expect(new Set(answers.map(({ user }) => user!.userId)).size).toBe(1);
    expect(answers.filter(({ created }) => created)).toHaveLength(1);
    expect(await countUsers(service, tenantId)).toBe(users + 1);
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
});
