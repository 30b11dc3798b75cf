import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { IdentityProvider, UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { expectRefusal } from "../support/refusals.ts";
import { startService, transports } from "../support/service.ts";
import { actionsOf, addUser, eventsOf, outcomes, uniqueEmail, uniquePhone } from "../support/users.ts";

const times = <T>(count: number, make: (n: number) => T) => Array.from({ length: count }, (_, n) => make(n));

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
