import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { IdentityProvider, UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { type TestService, startService, transports } from "../support/service.ts";
import {
  actionsOf,
  addUser,
  eventsOf,
  liveCodes,
  plantCode,
  uniqueEmail,
  uniquePhone,
  verifyContacts,
} from "../support/users.ts";

const mask = (...paths: string[]) => ({ updateMask: { paths } });

/** What became of calls made at once: how many were answered, and the reasons of the others. */
const outcomes = async (calls: readonly Promise<unknown>[]) => {
  const settled = await Promise.allSettled(calls);
  const failed = settled.filter(({ status }) => status === "rejected");
  const reasons = await Promise.all(
    failed.map(async (result) => (await refused(Promise.reject((result as PromiseRejectedResult).reason))).reason),
  );
  return { answered: settled.length - failed.length, reasons };
};

const times = <T>(count: number, make: (n: number) => T) => Array.from({ length: count }, (_, n) => make(n));

const connectionsOf = ({ pool }: TestService) =>
  pool.any(sql.type(z.object({ pid: z.number() }))`
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'`);

describe.each(transports)("%s: creating users", (transport) => {
  test("a created user is active and unverified, and found by its id and by each contact however it is written", async () => {
    const server = await startService(transport);
    const [tenantId, email, phone] = [await server.addTenant(), uniqueEmail(), uniquePhone()];
    const { user } = await server.auth.createUser({
      tenantId,
      email: `  ${email.toUpperCase()} `,
      phone: phone.replace(/^(\+49)(\d{3})/, " $1 ($2) "),
      displayName: " Ärztin 😀 ",
    });
    expect(user).toMatchObject({ tenantId, email, phone, displayName: " Ärztin 😀 ", state: UserState.ACTIVE });
    expect(user).toMatchObject({ emailVerified: false, phoneVerified: false });
    expect(user?.userId).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    expect(Math.abs(Number(user?.createTime?.seconds) * 1_000 - Date.now())).toBeLessThan(60_000);
    expect(user?.updateTime).toEqual(user?.createTime);
    const keys = [
      { case: "userId", value: user!.userId.toUpperCase() },
      { case: "email", value: ` ${email.toUpperCase()}` },
      { case: "phone", value: phone.replace("+49", "+49 ") },
    ] as const;
    for (const key of keys) expect((await server.auth.getUser({ tenantId, key })).user).toEqual(user);
  });

  test("its event has the names of what was said, and nothing of it", async () => {
    const server = await startService(transport);
    const [email, phone] = [uniqueEmail(), uniquePhone()];
    const password = "correct horse battery";
    const user = await addUser(server, { email, phone, displayName: "Ann", password });
    const [event] = await eventsOf(server, user.userId);
    expect(event).toMatchObject({ action: "auth.user.create", entityKind: "user", tenantId: user.tenantId });
    expect(event?.payload).toMatchObject({ fields: ["email", "phone", "display_name", "password"] });
    for (const text of [email, phone, "Ann", password]) expect(JSON.stringify(event?.payload)).not.toContain(text);
  });

  test("a password makes a password identity, and is stored as a hash alone", async () => {
    const server = await startService(transport);
    const { tenantId, userId } = await addUser(server, { password: "correct horse battery" });
    const { identities } = await server.auth.listIdentities({ tenantId, userId });
    expect(identities).toMatchObject([{ userId, provider: IdentityProvider.PASSWORD }]);
    const hash = await server.pool.oneFirst(sql.type(z.object({ hash: z.string() }))`
      SELECT password_hash_text AS hash FROM user_identities WHERE user_id = ${userId}::uuid`);
    expect(hash).toMatch(/^\$argon2id\$/);
    const other = await addUser(server);
    expect((await server.auth.listIdentities({ tenantId: other.tenantId, userId: other.userId })).identities).toEqual(
      [],
    );
  });

  test("a repeat with the same id and content answers as the first did and writes nothing", async () => {
    const server = await startService(transport);
    const [tenantId, userId, email] = [await server.addTenant(), randomUUID(), uniqueEmail()];
    const request = { tenantId, userId: userId.toUpperCase(), email, displayName: "Ann" };
    const { user } = await server.auth.createUser({ ...request, password: "correct horse battery" });
    expect(user?.userId).toBe(userId);
    const repeats = [
      request,
      { ...request, tenantId: tenantId.toUpperCase(), email: email.toUpperCase() },
      { tenantId, userId, email },
      // A password is never compared.
      { ...request, password: "another horse battery" },
    ];
    for (const repeat of repeats) expect((await server.auth.createUser(repeat)).user).toEqual(user);
    await server.auth.deactivateUser({ tenantId, userId });
    expect((await server.auth.createUser(request)).user).toMatchObject({ userId, state: UserState.INACTIVE });
    expect(await actionsOf(server, userId)).toEqual(["auth.user.deactivate", "auth.user.create"]);
  });

  test("a known id with other content, or of another tenant, is taken", async () => {
    const server = await startService(transport);
    const { tenantId, userId, email = "" } = await addUser(server, { displayName: "Ann" });
    const request = { tenantId, userId, email, displayName: "Ann" };
    const others = [
      { ...request, email: uniqueEmail() },
      { ...request, phone: uniquePhone() },
      { ...request, displayName: "Bob" },
      { ...request, tenantId: await server.addTenant() },
    ];
    for (const other of others) {
      const { metadata } = await expectRefusal(server.auth.createUser(other), "USER_ID_TAKEN");
      expect(metadata).toMatchObject({ user_id: userId });
    }
    expect(await actionsOf(server, userId)).toEqual(["auth.user.create"]);
  });

  test("of 20 creates with one id at once all answer one user, with one event", async () => {
    const server = await startService(transport);
    const [tenantId, userId, email] = [await server.addTenant(), randomUUID(), uniqueEmail()];
    const answers = await Promise.all(times(20, () => server.auth.createUser({ tenantId, userId, email })));
    for (const { user } of answers) expect(user).toEqual(answers[0]!.user);
    expect(await actionsOf(server, userId)).toEqual(["auth.user.create"]);
  });

  test.each(["email", "phone"] as const)("of 20 creates with one %s at once exactly one wins", async (kind) => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [email, phone] = [uniqueEmail(), uniquePhone()];
    const other = (n: number) =>
      kind === "email" ? { phone: `+49151${10_000_000 + n}` } : { email: `n${n}@x.example` };
    const creates = times(20, (n) =>
      server.auth.createUser({ tenantId, ...{ [kind]: { email, phone }[kind] }, ...other(n) }),
    );
    expect(await outcomes(creates)).toEqual({
      answered: 1,
      reasons: times(19, () => (kind === "email" ? "EMAIL_TAKEN" : "PHONE_TAKEN")),
    });
    expect((await server.auth.listUsers({ tenantId })).users).toHaveLength(1);
    // A contact is taken in its tenant alone.
    await server.auth.createUser({ tenantId: await server.addTenant(), email, phone });
  });

  test.each([
    [{}, ["email", "phone"]],
    [{ email: "" }, ["email"]],
    [{ email: "ann" }, ["email"]],
    [{ email: `${"x".repeat(250)}@example.com` }, ["email"]],
    [{ email: "a\0b@example.com" }, ["email"]],
    [{ phone: "0151 2345678" }, ["phone"]],
    [{ phone: "+49" }, ["phone"]],
    [{ email: "ann@example.com", phone: "nobody" }, ["phone"]],
    [{ email: "ann@example.com", displayName: "" }, ["display_name"]],
    [{ email: "ann@example.com", displayName: "x".repeat(201) }, ["display_name"]],
    [{ email: "ann@example.com", password: "" }, ["password"]],
    [{ email: "ann@example.com", password: "x".repeat(257) }, ["password"]],
    [{ email: "ann@example.com", userId: "ann" }, ["user_id"]],
    [{ email: "ann@example.com", tenantId: "acme" }, ["tenant_id"]],
  ])("a create with %j names the fields %j", async (request, fields) => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const answer = await expectRefusal(server.auth.createUser({ tenantId, ...request }), "INVALID_REQUEST");
    expect(answer.fields).toEqual(fields);
    expect((await server.auth.listUsers({ tenantId })).users).toEqual([]);
  });

  test.each(["short", "ann.example@example.com", "ANN.EXAMPLE", "Ann Example!", "4915123456789"])(
    "the password %s is too weak, and nothing is created",
    async (password) => {
      const server = await startService(transport);
      const tenantId = await server.addTenant();
      const request = { email: "ann.example@example.com", phone: "+4915123456789", displayName: "Ann Example!" };
      const create = server.auth.createUser({ tenantId, ...request, password });
      expect((await expectRefusal(create, "PASSWORD_TOO_WEAK")).fields).toEqual(["password"]);
      expect((await server.auth.listUsers({ tenantId })).users).toEqual([]);
    },
  );

  test("a user needs a tenant that exists, suspended or not", async () => {
    const server = await startService(transport);
    const [tenantId, unknown] = [await server.addTenant(), randomUUID()];
    const create = server.auth.createUser({ tenantId: unknown, email: uniqueEmail() });
    expect((await expectRefusal(create, "TENANT_NOT_FOUND")).metadata).toMatchObject({ tenant_id: unknown });
    await server.org.suspendTenant({ tenantId });
    await addUser(server, { tenantId });
  });
});

describe.each(transports)("%s: finding users", (transport) => {
  test("an unknown user, and one of another tenant, is not found, and a contact is not repeated", async () => {
    const server = await startService(transport);
    const { userId, email = "" } = await addUser(server, { phone: uniquePhone(), email: uniqueEmail() });
    const tenantId = await server.addTenant();
    for (const value of [userId, randomUUID()]) {
      const { metadata } = await expectRefusal(
        server.auth.getUser({ tenantId, key: { case: "userId", value } }),
        "USER_NOT_FOUND",
      );
      expect(metadata).toMatchObject({ user_id: value });
    }
    const byEmail = server.auth.getUser({ tenantId, key: { case: "email", value: email } });
    expect(JSON.stringify((await expectRefusal(byEmail, "USER_NOT_FOUND")).metadata)).not.toContain(email);
    await expectRefusal(
      server.auth.getUser({ tenantId, key: { case: "phone", value: uniquePhone() } }),
      "USER_NOT_FOUND",
    );
  });

  test.each([
    [{ case: "email", value: "ann" }, "email"],
    [{ case: "phone", value: "12" }, "phone"],
    [{ case: "userId", value: "ann" }, "user_id"],
    [{ case: undefined }, "key"],
  ] as const)("a search by %j names the field %s", async (key, field) => {
    const server = await startService(transport);
    const get = server.auth.getUser({ tenantId: await server.addTenant(), key });
    expect((await expectRefusal(get, "INVALID_REQUEST")).fields).toEqual([field]);
  });

  test("a batch answers those that exist, each once, in the order asked", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const users = await Promise.all(times(5, () => addUser(server, { tenantId })));
    const [ids, foreign] = [users.map(({ userId }) => userId).reverse(), await addUser(server)];
    const asked = [ids[0]!.toUpperCase(), randomUUID(), ...ids, foreign.userId, ids[2]!];
    const answer = await server.auth.batchGetUsers({ tenantId, userIds: asked });
    expect(answer.users.map(({ userId }) => userId)).toEqual(ids);
    expect(answer.users[0]).toEqual(users.at(-1));
    const many = times(1_000, () => randomUUID());
    expect((await server.auth.batchGetUsers({ tenantId, userIds: many })).users).toEqual([]);
    for (const userIds of [[], [...many, randomUUID()]]) {
      const batch = server.auth.batchGetUsers({ tenantId, userIds });
      expect((await expectRefusal(batch, "INVALID_REQUEST")).fields).toEqual(["user_ids"]);
    }
  });
});

describe.each(transports)("%s: changing users", (transport) => {
  test("an update changes what its mask names, or without one what is sent", async () => {
    const server = await startService(transport);
    const { tenantId, userId } = await addUser(server, { displayName: "Ann" });
    const [email, phone] = [uniqueEmail(), uniquePhone()];
    const update = async (request: object) => (await server.auth.updateUser({ tenantId, userId, ...request })).user;
    expect(await update({ email: email.toUpperCase() })).toMatchObject({ email, displayName: "Ann" });
    expect(await update({ phone, displayName: "Bob", ...mask("phone") })).toMatchObject({ phone, displayName: "Ann" });
    expect(await update({ displayName: "" })).toMatchObject({ email, phone, displayName: "Ann" });
    expect((await update(mask("display_name")))?.displayName).toBeUndefined();
    expect(await update({ phone, displayName: "Cy", ...mask("*") })).toMatchObject({ phone, displayName: "Cy" });
    expect(
      (await server.auth.getUser({ tenantId, key: { case: "userId", value: userId } })).user?.email,
    ).toBeUndefined();
    const payloads = (await eventsOf(server, userId)).map(({ payload }) => payload?.["fields"]);
    expect(payloads).toEqual([
      ["email", "display_name"],
      ["display_name"],
      ["phone"],
      ["email"],
      ["email", "display_name"],
    ]);
  });

  test("a changed contact is unverified again; an equal one stays verified and writes nothing", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { email: uniqueEmail(), phone: uniquePhone() });
    const { tenantId, userId, email = "", phone = "" } = user;
    await verifyContacts(server, user, { email: true, phone: true });
    const same = await server.auth.updateUser({ tenantId, userId, email: ` ${email.toUpperCase()}`, phone });
    expect(same.user).toEqual({ ...user, emailVerified: true, phoneVerified: true });
    const changed = await server.auth.updateUser({ tenantId, userId, email: uniqueEmail(), phone });
    expect(changed.user).toMatchObject({ emailVerified: false, phoneVerified: true });
    const cleared = await server.auth.updateUser({ tenantId, userId, ...mask("phone") });
    expect(cleared.user).toMatchObject({ phoneVerified: false });
    expect(await actionsOf(server, userId)).toEqual(["auth.user.update", "auth.user.update", "auth.user.create"]);
  });

  test("a changed or cleared contact ends the user's codes to it, and no others", async () => {
    const server = await startService(transport);
    const {
      tenantId,
      userId,
      email = "",
      phone = "",
    } = await addUser(server, {
      email: uniqueEmail(),
      phone: uniquePhone(),
    });
    const toEmail = await plantCode(server, { tenantId, userId, destination: email });
    const toPhone = await plantCode(server, { tenantId, userId, destination: phone });
    const all = [toEmail, toPhone];
    await server.auth.updateUser({ tenantId, userId, email, displayName: "Ann" });
    expect(await liveCodes(server, all)).toEqual(all);
    await server.auth.updateUser({ tenantId, userId, email: uniqueEmail() });
    expect(await liveCodes(server, all)).toEqual([toPhone]);
    await server.auth.updateUser({ tenantId, userId, ...mask("phone") });
    expect(await liveCodes(server, all)).toEqual([]);
  });

  test("the last contact stays, whether it is cleared alone or with the other", async () => {
    const server = await startService(transport);
    const { tenantId, userId } = await addUser(server, { email: uniqueEmail(), phone: uniquePhone() });
    await expectRefusal(server.auth.updateUser({ tenantId, userId, ...mask("*") }), "LAST_CONTACT");
    await server.auth.updateUser({ tenantId, userId, ...mask("email") });
    await expectRefusal(server.auth.updateUser({ tenantId, userId, ...mask("phone") }), "LAST_CONTACT");
    // Who takes one may give up the other.
    const { user } = await server.auth.updateUser({
      tenantId,
      userId,
      email: uniqueEmail(),
      ...mask("email", "phone"),
    });
    expect(user?.phone).toBeUndefined();
  });

  test("of 20 that clear one contact or the other at once exactly one kind wins", async () => {
    const server = await startService(transport);
    const { tenantId, userId } = await addUser(server, { email: uniqueEmail(), phone: uniquePhone() });
    const clear = (n: number) => server.auth.updateUser({ tenantId, userId, ...mask(n % 2 === 0 ? "email" : "phone") });
    expect(await outcomes(times(20, clear))).toEqual({ answered: 10, reasons: times(10, () => "LAST_CONTACT") });
    const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value: userId } });
    expect([user?.email, user?.phone].filter((contact) => contact !== undefined)).toHaveLength(1);
    expect(await actionsOf(server, userId)).toEqual(["auth.user.update", "auth.user.create"]);
  });

  test.each(["email", "phone"] as const)(
    "of 20 users that take one %s at once exactly one wins, and no connection is lost",
    async (kind) => {
      const server = await startService(transport);
      const tenantId = await server.addTenant();
      const users = await Promise.all(times(20, () => addUser(server, { tenantId })));
      const wanted = kind === "email" ? { email: uniqueEmail() } : { phone: uniquePhone() };
      const before = await connectionsOf(server);
      const updates = users.map(({ userId }) => server.auth.updateUser({ tenantId, userId, ...wanted }));
      const reason = kind === "email" ? "EMAIL_TAKEN" : "PHONE_TAKEN";
      expect(await outcomes(updates)).toEqual({ answered: 1, reasons: times(19, () => reason) });
      expect(await connectionsOf(server)).toEqual(expect.arrayContaining([...before]));
    },
  );

  test("users that swap their contacts at once are each answered or told that it is taken", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [ann, bob] = [await addUser(server, { tenantId }), await addUser(server, { tenantId })];
    const { answered, reasons } = await outcomes([
      server.auth.updateUser({ tenantId, userId: ann.userId, email: bob.email! }),
      server.auth.updateUser({ tenantId, userId: bob.userId, email: ann.email! }),
    ]);
    expect([answered, ...reasons]).toEqual([0, "EMAIL_TAKEN", "EMAIL_TAKEN"]);
  });

  test.each([
    [mask("name"), "update_mask"],
    [mask("email", "state"), "update_mask"],
    [mask("email_verified"), "update_mask"],
    [{ email: "ann" }, "email"],
    [{ email: "  ", ...mask("email") }, "email"],
    [{ phone: "12" }, "phone"],
    [{ displayName: "x".repeat(201) }, "display_name"],
    [{ displayName: "a\0b" }, "display_name"],
    [{ userId: "ann", email: "ann@example.com" }, "user_id"],
  ])("an update with %j names the field %s", async (request, field) => {
    const server = await startService(transport);
    const { tenantId, userId } = await addUser(server);
    const update = server.auth.updateUser({ tenantId, userId, ...request });
    expect((await expectRefusal(update, "INVALID_REQUEST")).fields).toEqual([field]);
    expect(await actionsOf(server, userId)).toEqual(["auth.user.create"]);
  });

  test("an unknown user, one of another tenant and an erased one are not changed", async () => {
    const server = await startService(transport);
    const { tenantId, userId } = await addUser(server);
    const update = { displayName: "Bob" };
    for (const other of [
      { tenantId, userId: randomUUID() },
      { tenantId: await server.addTenant(), userId },
    ]) {
      const answer = await expectRefusal(server.auth.updateUser({ ...other, ...update }), "USER_NOT_FOUND");
      expect(answer.metadata).toMatchObject({ user_id: other.userId });
    }
    await server.auth.eraseUser({ tenantId, userId });
    await expectRefusal(server.auth.updateUser({ tenantId, userId, ...update }), "USER_ERASED");
  });

  test("a tenant's service creates, finds and changes users of its tenant, and of no other", async () => {
    const server = await startService(transport);
    const [own, foreign] = [await addUser(server), await addUser(server)];
    const { auth } = await server.addService(["auth.user.*"], own.tenantId);
    const { tenantId, userId } = own;
    expect((await auth.updateUser({ tenantId, userId, displayName: "Ann" })).user?.displayName).toBe("Ann");
    await expectRefusal(auth.createUser({ tenantId: foreign.tenantId, email: uniqueEmail() }), "TENANT_MISMATCH");
    await expectRefusal(auth.createUser({ tenantId, userId: foreign.userId, email: uniqueEmail() }), "USER_ID_TAKEN");
    expect((await auth.batchGetUsers({ tenantId, userIds: [foreign.userId, userId] })).users).toHaveLength(1);
    const reader = await server.addService(["auth.user.read"], tenantId);
    await expectRefusal(reader.auth.updateUser({ tenantId, userId, displayName: "Bob" }), "PERMISSION_MISSING");
  });
});
