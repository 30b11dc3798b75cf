import { randomUUID } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, startService, transports } from "../support/service.ts";
import {
  actionsOf,
  addUser,
  eventsOf,
  liveCodes,
  outcomes,
  plantCode,
  uniqueEmail,
  uniquePhone,
  verifyContacts,
} from "../support/users.ts";

const mask = (...paths: string[]) => ({ updateMask: { paths } });

const times = <T>(count: number, make: (n: number) => T) => Array.from({ length: count }, (_, n) => make(n));

const connectionsOf = ({ pool }: TestService) =>
  pool.any(sql.type(z.object({ pid: z.number() }))`
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'`);

describe.each(transports)("%s", (transport) => {
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
    expect(timestampMs(changed.user!.updateTime!)).toBeGreaterThan(timestampMs(user.updateTime!));
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
    const elsewhere = await plantCode(server, { tenantId: await server.addTenant(), destination: email });
    const all = [toEmail, toPhone, elsewhere];
    await server.auth.updateUser({ tenantId, userId, email, displayName: "Ann" });
    expect(await liveCodes(server, all)).toEqual(all);
    await server.auth.updateUser({ tenantId, userId, email: uniqueEmail() });
    expect(await liveCodes(server, all)).toEqual([toPhone, elsewhere]);
    await server.auth.updateUser({ tenantId, userId, ...mask("phone") });
    expect(await liveCodes(server, all)).toEqual([elsewhere]);
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

  test("of two that clear a user's e-mail and its phone at once exactly one wins, for ten users at once", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const users = await Promise.all(
      times(10, (n) => addUser(server, { tenantId, email: uniqueEmail(), phone: `+49151${20_000_000 + n}` })),
    );
    const clears = users.flatMap(({ userId }) =>
      ["email", "phone"].map((path) => server.auth.updateUser({ tenantId, userId, ...mask(path) })),
    );
    expect(await outcomes(clears)).toEqual({ answered: 10, reasons: times(10, () => "LAST_CONTACT") });
    for (const { userId } of users) {
      const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value: userId } });
      expect([user?.email, user?.phone].filter((contact) => contact !== undefined)).toHaveLength(1);
      expect(await actionsOf(server, userId)).toEqual(["auth.user.update", "auth.user.create"]);
    }
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
