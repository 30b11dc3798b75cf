import { randomUUID } from "node:crypto";
import { type DatabasePool, sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { OtpChannel, OtpPurpose, type User, UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { END_OF, plantWindows, sessionsOf, windowsOf } from "../support/erasures.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, startService, transports } from "../support/service.ts";
import { linkGoogle } from "../support/user-rows.ts";
import { actionsOf, addUser, eventsOf, liveCodes, plantCode, uniqueEmail, uniquePhone } from "../support/users.ts";

const PASSWORD = "correct horse battery";

const keyOf = ({ tenantId, userId }: User) => ({ tenantId, userId });

const tableRow = z.object({ schema: z.string(), table: z.string() });
const foundRow = z.object({ text: z.string() });

/** Which of the texts stand anywhere in the database: in any column of any table of any schema. */
const findTexts = async (pool: DatabasePool, texts: readonly string[]) => {
  const tables = await pool.any(sql.type(tableRow)`
    SELECT n.nspname::text AS schema, c.relname::text AS "table"
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^(pg_|information_schema)'`);
  expect(tables.length).toBeGreaterThan(20);
  const found = await Promise.all(
    tables.map(async ({ schema, table }) => {
      // A row as text has every column in it.
      const rows = await pool.any(sql.type(foundRow)`
        SELECT x.text FROM unnest(${sql.array(texts, "text")}) AS x (text)
        WHERE EXISTS (
          SELECT FROM ${sql.identifier([schema, table])} t WHERE strpos(lower(t::text), lower(x.text)) > 0
        )`);
      return rows.map(({ text }) => `${table}: ${text}`);
    }),
  );
  return found.flat();
};

interface Invited {
  readonly tenantId: string;
  readonly email?: string;
  readonly phone?: string;
  readonly acceptedBy?: string;
  readonly expired?: boolean;
}

const plantInvitation = async ({ pool }: TestService, { tenantId, email, phone, acceptedBy, expired }: Invited) => {
  const inviteId = randomUUID();
  await pool.query(sql.unsafe`
    INSERT INTO invitations (invite_id, tenant_id, email_addr, phone_e164, invite_token_hash_text, expiry_utc,
      accepted_utc, accepted_user_id)
    VALUES (${inviteId}::uuid, ${tenantId}::uuid, ${email ?? null}, ${phone ?? null}, 'x',
      now() + ${expired ? -1 : 1}::int * interval '1 day',
      CASE WHEN ${acceptedBy ?? null}::uuid IS NULL THEN NULL ELSE now() END, ${acceptedBy ?? null}::uuid)`);
  return inviteId;
};

const invitationRow = z.object({ contact: z.string().nullable(), revoked: z.boolean() });

const invitation = ({ pool }: TestService, inviteId: string) =>
  pool.one(sql.type(invitationRow)`
    SELECT coalesce(email_addr, phone_e164) AS contact, revoked_utc IS NOT NULL AS revoked
    FROM invitations WHERE invite_id = ${inviteId}::uuid`);

const logIn = (server: TestService, { tenantId, email = "" }: User, client = {}) =>
  server.auth.loginWithPassword({ tenantId, identifier: { case: "email", value: email }, password: PASSWORD, client });

describe.each(transports)("%s", (transport) => {
  test("nothing personal of an erased user stands anywhere in the database", async () => {
    const server = await startService(transport);
    const mark = randomUUID().slice(0, 8);
    const client = { userAgent: `Browser/${mark}`, ip: "2001:db8:7:7::7" };
    const former = uniqueEmail();
    const named = await addUser(server, {
      email: former,
      phone: uniquePhone(),
      displayName: `Ann ${mark}`,
      password: PASSWORD,
    });
    const { tenantId, userId } = named;
    await logIn(server, named, client);
    const subject = `1${BigInt(`0x${mark}`)}`;
    await server.pool.query(linkGoogle(named, tenantId, subject));
    await plantInvitation(server, { tenantId, email: former, acceptedBy: userId });
    await plantCode(server, { tenantId, userId, destination: former });
    await plantCode(server, { tenantId, destination: former });
    const email = uniqueEmail();
    const user = (await server.auth.updateUser({ tenantId, userId, email })).user!;
    const phone = user.phone ?? "";
    for (const [channel, destination] of [
      [OtpChannel.EMAIL, email],
      [OtpChannel.SMS, phone],
    ] as const) {
      await server.auth.requestOtp({ tenantId, channel, destination, purpose: OtpPurpose.LOGIN, client });
    }
    await plantCode(server, { tenantId, destination: phone });
    await plantInvitation(server, { tenantId, email, phone });
    const texts = [former, email, phone, `Ann ${mark}`, client.userAgent, client.ip, subject];
    expect(new Set((await findTexts(server.pool, texts)).map((found) => found.replace(/^\w+: /, "")))).toEqual(
      new Set(texts),
    );

    const { user: erased } = await server.auth.eraseUser({ tenantId, userId });
    expect(await findTexts(server.pool, texts)).toEqual([]);
    expect(erased).toMatchObject({ tenantId, userId, state: UserState.ERASED, createTime: user.createTime });
    expect([erased?.email, erased?.phone, erased?.displayName]).toEqual([undefined, undefined, undefined]);
    expect([erased?.emailVerified, erased?.phoneVerified]).toEqual([false, false]);
    expect((await server.auth.getUser({ tenantId, key: { case: "userId", value: userId } })).user).toEqual(erased);
    const [event] = await eventsOf(server, userId);
    expect(event).toMatchObject({ action: "auth.user.erase", entityKind: "user", tenantId });
    const [networks, codes] = [
      sql.type(foundRow)`SELECT network_hash AS text FROM login_networks WHERE user_id = ${userId}::uuid`,
      sql.type(foundRow)`SELECT otp_id::text AS text FROM otp_codes WHERE tenant_id = ${tenantId}::uuid`,
    ];
    expect([...(await server.pool.any(networks)), ...(await server.pool.any(codes))]).toEqual([]);
  });

  test("an erased user signs in nowhere, and its contacts are free", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { password: PASSWORD, email: uniqueEmail() });
    await logIn(server, user);
    await logIn(server, user);
    await server.auth.eraseUser(keyOf(user));
    expect(await sessionsOf(server, user)).toEqual([{ reason: "erased", clients: 0n, sessions: 2n }]);
    await expectRefusal(logIn(server, user), "INVALID_CREDENTIALS");
    const byEmail = server.auth.getUser({ tenantId: user.tenantId, key: { case: "email", value: user.email! } });
    await expectRefusal(byEmail, "USER_NOT_FOUND");
    await addUser(server, { tenantId: user.tenantId, email: user.email! });
    const again = server.auth.createUser({ ...keyOf(user), email: uniqueEmail() });
    await expectRefusal(again, "USER_ID_TAKEN");
  });

  test("assignments and grants end now, or are cancelled where they have not begun; what has ended keeps its end", async () => {
    const server = await startService(transport);
    const [user, other] = [await addUser(server), await addUser(server)];
    for (const each of [user, other]) await plantWindows(server, each);
    await server.auth.eraseUser(keyOf(user));
    for (const table of ["org_assignments", "visibility_grants"] as const) {
      const windows = await windowsOf(server, table, user);
      expect(windows.map(({ ended }) => ended)).toEqual([true, true, true, true, true]);
      expect(windows.map(({ ended_now }) => ended_now)).toEqual([false, true, true, false, false]);
      expect(windows.map(({ cancelled_now }) => cancelled_now)).toEqual([false, false, false, true, false]);
      const events = await Promise.all(windows.map(({ id }) => eventsOf(server, id)));
      const end = { action: END_OF[table], tenantId: user.tenantId, payload: { user_id: user.userId } };
      expect(events).toMatchObject([[], [end], [end], [end], []]);
      expect(events[3]![0]!.payload).toHaveProperty("cancel_time");
      const others = await windowsOf(server, table, other);
      expect(others.map(({ ended }) => ended)).toEqual([true, false, false, false, true]);
    }
  });

  test("invitations lose the user's contacts, and open ones are revoked; another tenant's stay", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { email: uniqueEmail(), phone: uniquePhone() });
    const { tenantId, userId, email = "", phone = "" } = user;
    const plant = (invited: Partial<Invited>) => plantInvitation(server, { tenantId, ...invited });
    const open = [await plant({ email }), await plant({ phone })];
    const accepted = [{ email: uniqueEmail() }, { phone: uniquePhone() }].map((former) =>
      plant({ ...former, acceptedBy: userId }),
    );
    const ended = [await plant({ email, expired: true }), ...(await Promise.all(accepted))];
    const revoked = await plant({ email });
    await server.org.revokeInvitation({ tenantId, invitationId: revoked });
    const elsewhere = { tenantId: await server.addTenant() };
    const theirs = [await plant({ ...elsewhere, email }), await plant({ ...elsewhere, phone })];
    await server.auth.eraseUser({ tenantId, userId });
    for (const id of [...open, revoked]) {
      expect(await invitation(server, id)).toEqual({ contact: null, revoked: true });
      expect(await actionsOf(server, id)).toEqual(["org.invitation.revoke"]);
    }
    for (const id of ended) {
      expect(await invitation(server, id)).toEqual({ contact: null, revoked: false });
      expect(await actionsOf(server, id)).toEqual([]);
    }
    expect(await Promise.all(theirs.map((id) => invitation(server, id)))).toEqual([
      { contact: email, revoked: false },
      { contact: phone, revoked: false },
    ]);
  });

  test("another tenant's codes to the same contacts stay", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { email: uniqueEmail(), phone: uniquePhone() });
    const { email = "", phone = "" } = user;
    const other = await addUser(server, { email, phone });
    const theirs = await Promise.all([
      plantCode(server, { ...keyOf(other), destination: email }),
      plantCode(server, { ...keyOf(other), destination: phone }),
      plantCode(server, { tenantId: await server.addTenant(), destination: email }),
    ]);
    await server.auth.eraseUser(keyOf(user));
    expect(await liveCodes(server, theirs)).toEqual(theirs);
  });

  test("a repeat answers what is left and writes nothing, also 20 at once", async () => {
    const server = await startService(transport);
    const user = await addUser(server);
    const answers = await Promise.all(Array.from({ length: 20 }, () => server.auth.eraseUser(keyOf(user))));
    for (const answer of answers) expect(answer.user).toEqual(answers[0]!.user);
    expect(await actionsOf(server, user.userId)).toEqual(["auth.user.erase", "auth.user.create"]);
  });

  test("whatever else happens to the user at once, nothing personal comes back", async () => {
    const server = await startService(transport);
    const user = await addUser(server, { password: PASSWORD });
    const client = { userAgent: "Browser/1", ip: "192.0.2.7" };
    const logins = Array.from({ length: 5 }, () => logIn(server, user, client));
    await Promise.any(logins);
    const updates = Array.from({ length: 10 }, (_, n) =>
      server.auth.updateUser({ ...keyOf(user), email: uniqueEmail(), displayName: `Ann ${n}` }),
    );
    const others = Promise.allSettled([...logins, ...updates]);
    await server.auth.eraseUser(keyOf(user));
    await others;
    expect((await sessionsOf(server, user)).map(({ reason, clients }) => [reason, clients])).toEqual([["erased", 0n]]);
    const { user: left } = await server.auth.getUser({
      tenantId: user.tenantId,
      key: { case: "userId", value: user.userId },
    });
    expect([left?.state, left?.email, left?.displayName]).toEqual([UserState.ERASED, undefined, undefined]);
  });

  test("an unknown user and one of another tenant are not erased", async () => {
    const server = await startService(transport);
    const user = await addUser(server);
    const other = await server.addTenant();
    for (const key of [
      { ...keyOf(user), userId: randomUUID() },
      { ...keyOf(user), tenantId: other },
    ]) {
      const { metadata } = await expectRefusal(server.auth.eraseUser(key), "USER_NOT_FOUND");
      expect(metadata).toMatchObject({ user_id: key.userId });
    }
    await expectRefusal(server.auth.eraseUser({ ...keyOf(user), userId: "x" }), "INVALID_REQUEST");
    const { auth } = await server.addService(["*"], other);
    await expectRefusal(auth.eraseUser(keyOf(user)), "TENANT_MISMATCH");
    await expectRefusal(auth.eraseUser({ ...keyOf(user), tenantId: other }), "USER_NOT_FOUND");
    expect(await actionsOf(server, user.userId)).toEqual(["auth.user.create"]);
  });
});
