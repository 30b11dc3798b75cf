import { type SqlToken, sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, launchService, startService, transports } from "../support/service.ts";
import { type SignedIn, signInBy } from "../support/sign-in.ts";
import { actionsOf } from "../support/users.ts";

const sessionRow = z.object({
  generation: z.number(),
  refresh_token_hash_text: z.string(),
  refreshed_utc: z.number().nullable(),
  expiry_utc: z.number(),
  hard_expiry_utc: z.number(),
  revoked_utc: z.number().nullable(),
  end_reason_code: z.string().nullable(),
  client_ip_text: z.string().nullable(),
  client_user_agent_text: z.string().nullable(),
});

const rowOf = ({ pool }: TestService, sessionId: string) =>
  pool.one(sql.type(sessionRow)`
    SELECT generation, refresh_token_hash_text, refreshed_utc, expiry_utc, hard_expiry_utc, revoked_utc, end_reason_code,
      client_ip_text, client_user_agent_text
    FROM refresh_sessions WHERE session_id = ${sessionId}::uuid`);

const change = ({ pool }: TestService, sessionId: string, set: SqlToken) =>
  pool.query(sql.unsafe`UPDATE refresh_sessions SET ${set} WHERE session_id = ${sessionId}::uuid`);

/** Moves a session into the past, its rotations with it. */
const age = (service: TestService, sessionId: string, interval: string) =>
  change(
    service,
    sessionId,
    sql.fragment`created_utc = created_utc - ${interval}::interval, expiry_utc = expiry_utc - ${interval}::interval,
      hard_expiry_utc = hard_expiry_utc - ${interval}::interval, refreshed_utc = refreshed_utc - ${interval}::interval`,
  );

const refreshed = async ({ auth }: Pick<TestService, "auth">, refreshToken: string) => {
  const { tokens } = await auth.refreshSession({ refreshToken });
  return tokens!;
};

/** Each is a token or a state in which no refresh is good, and the caller who tries. */
const spoilers: Record<string, (service: TestService, signedIn: SignedIn, other: SignedIn) => Promise<string>> = {
  "a token of no form": () => Promise.resolve("rt_nothing"),
  "an access token": (_, { accessToken }) => Promise.resolve(accessToken),
  "an unknown session": (_, { refreshToken, sessionId }) =>
    Promise.resolve(refreshToken.replace(sessionId, "00000000-0000-7000-8000-000000000000")),
  "a forged MAC": (_, { refreshToken }) => Promise.resolve(`${refreshToken.slice(0, -43)}${"A".repeat(43)}`),
  "another spelling of the same MAC": (_, { refreshToken }) => {
    const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const last = alphabet.indexOf(refreshToken.at(-1) ?? "");
    return Promise.resolve(`${refreshToken.slice(0, -1)}${alphabet[last ^ 1]}`);
  },
  "another session's MAC": (_, { refreshToken }, other) =>
    Promise.resolve(`${refreshToken.slice(0, -43)}${other.refreshToken.slice(-43)}`),
  "the MAC of another generation": (_, { refreshToken }) => Promise.resolve(refreshToken.replace("_0_", "_1_")),
  "a generation that is no number of ours": (_, { refreshToken }) =>
    Promise.resolve(refreshToken.replace("_0_", "_99999999999999999999_")),
  "a generation that the session has not come to": async (service, { sessionId, refreshToken }) => {
    const { refreshToken: next } = await refreshed(service, refreshToken);
    // As after a restore of the database to a moment before that rotation.
    await change(service, sessionId, sql.fragment`generation = 0, refreshed_utc = NULL`);
    return next;
  },
  "a session idle for too long": async (service, { sessionId, refreshToken }) => {
    await change(service, sessionId, sql.fragment`expiry_utc = now()`);
    return refreshToken;
  },
  "a session older than a session may become": async (service, { sessionId, refreshToken }) => {
    await change(service, sessionId, sql.fragment`expiry_utc = now(), hard_expiry_utc = now()`);
    return refreshToken;
  },
  "an ended session": async ({ auth }, { tenantId, sessionId, refreshToken }) => {
    await auth.revokeSession({ tenantId, sessionId });
    return refreshToken;
  },
  "a session that no login of ours opened": async (service, { sessionId, refreshToken }) => {
    await change(service, sessionId, sql.fragment`refresh_seed = NULL, hard_expiry_utc = NULL`);
    return refreshToken;
  },
  "an inactive user": async ({ pool }, { userId, refreshToken }) => {
    await pool.query(sql.unsafe`UPDATE users SET user_state_code = 'inactive' WHERE user_id = ${userId}::uuid`);
    return refreshToken;
  },
  "a suspended tenant": async ({ org }, { tenantId, refreshToken }) => {
    await org.suspendTenant({ tenantId });
    return refreshToken;
  },
};

describe.each(transports)("%s", (transport) => {
  test("a refresh answers new tokens of the same session, and moves its idle end", async () => {
    const service = await startService(transport);
    const { refreshToken, sessionId, tenantId, userId } = await (await signInBy(service))();
    await age(service, sessionId, "1 day");
    const before = await rowOf(service, sessionId);
    const tokens = await refreshed(service, refreshToken);
    const after = await rowOf(service, sessionId);
    expect(tokens).toMatchObject({ sessionId, refreshToken: expect.stringMatching(`^rt_${sessionId}_1_`) as string });
    expect(after).toMatchObject({ generation: 1, revoked_utc: null, hard_expiry_utc: before.hard_expiry_utc });
    expect(after.expiry_utc - before.expiry_utc).toBeGreaterThan(86_000_000);
    expect(Number(tokens.refreshExpireTime?.seconds)).toBe(Math.floor(after.expiry_utc / 1_000));
    expect(await service.auth.verifyAccessToken({ accessToken: tokens.accessToken })).toMatchObject({
      active: true,
      userId,
      tenantId,
      sessionId,
    });
    expect(await actionsOf(service, sessionId)).toEqual(["auth.session.create"]);
  });

  test("no refresh carries a session beyond the end that its login set", async () => {
    const service = await startService(transport);
    const { refreshToken, sessionId } = await (await signInBy(service))();
    await age(service, sessionId, "29 days");
    const second = await refreshed(service, refreshToken);
    await age(service, sessionId, "29 days");
    const third = await refreshed(service, second.refreshToken);
    await age(service, sessionId, "29 days");
    const last = await refreshed(service, third.refreshToken);
    const row = await rowOf(service, sessionId);
    expect(row.expiry_utc).toBe(row.hard_expiry_utc);
    await age(service, sessionId, "3 days");
    await expectRefusal(service.auth.refreshSession({ refreshToken: last.refreshToken }), "SESSION_INVALID");
  });

  test("the session takes over what the client now says of itself, and keeps what it does not say", async () => {
    const service = await startService(transport);
    const { refreshToken, sessionId } = await (
      await signInBy(service)
    )({ client: { ip: "192.0.2.1", userAgent: "old" } });
    await service.auth.refreshSession({ refreshToken, client: { ip: "2001:db8:0:0::1" } });
    expect(await rowOf(service, sessionId)).toMatchObject({
      client_ip_text: "2001:db8::1",
      client_user_agent_text: "old",
    });
    const { fields } = await expectRefusal(
      service.auth.refreshSession({ refreshToken, client: { ip: "nowhere" } }),
      "INVALID_REQUEST",
    );
    expect(fields).toEqual(["client.ip"]);
  });

  test("a rotated token shown again within the grace gets the same token as before, and writes nothing", async () => {
    const service = await startService(transport);
    const { refreshToken, sessionId } = await (await signInBy(service))();
    const first = await refreshed(service, refreshToken);
    await change(service, sessionId, sql.fragment`refreshed_utc = refreshed_utc - interval '9 seconds'`);
    const before = await rowOf(service, sessionId);
    const again = await refreshed(service, refreshToken);
    expect(again.refreshToken).toBe(first.refreshToken);
    expect(again.refreshExpireTime).toEqual(first.refreshExpireTime);
    expect(await rowOf(service, sessionId)).toEqual(before);
    expect((await refreshed(service, again.refreshToken)).refreshToken).toMatch(/_2_/);
  });

  test("a rotated token shown after the grace ends the session, and says so in the record", async () => {
    const service = await startService(transport);
    const { refreshToken, sessionId } = await (await signInBy(service))();
    const { refreshToken: current, accessToken } = await refreshed(service, refreshToken);
    await change(service, sessionId, sql.fragment`refreshed_utc = refreshed_utc - interval '11 seconds'`);
    await expectRefusal(service.auth.refreshSession({ refreshToken }), "SESSION_REUSED");
    expect(await rowOf(service, sessionId)).toMatchObject({ end_reason_code: "reused", generation: 1 });
    expect(await actionsOf(service, sessionId)).toEqual(["auth.session.reuse", "auth.session.create"]);
    await expectRefusal(service.auth.refreshSession({ refreshToken: current }), "SESSION_INVALID");
    await expectRefusal(service.auth.refreshSession({ refreshToken }), "SESSION_INVALID");
    expect((await service.auth.verifyAccessToken({ accessToken })).active).toBe(false);
  });

  test("a token two generations old ends the session at once", async () => {
    const service = await startService(transport);
    const { refreshToken, sessionId } = await (await signInBy(service))();
    await refreshed(service, (await refreshed(service, refreshToken)).refreshToken);
    await expectRefusal(service.auth.refreshSession({ refreshToken }), "SESSION_REUSED");
    expect(await actionsOf(service, sessionId)).toEqual(["auth.session.reuse", "auth.session.create"]);
  });

  test.each(Object.keys(spoilers))("%s is SESSION_INVALID, and writes nothing", async (name) => {
    const service = await startService(transport);
    const signIn = await signInBy(service);
    const signedIn = await signIn();
    const token = await spoilers[name]!(service, signedIn, await signIn());
    const before = await rowOf(service, signedIn.sessionId);
    const actions = await actionsOf(service, signedIn.sessionId);
    await expectRefusal(service.auth.refreshSession({ refreshToken: token }), "SESSION_INVALID");
    expect(await rowOf(service, signedIn.sessionId)).toEqual(before);
    expect(await actionsOf(service, signedIn.sessionId)).toEqual(actions);
  });

  // A retry gets no token that its user may not have, and what is no theft ends nothing.
  test.each(
    ["an inactive user", "a suspended tenant"].flatMap((name) => [
      [name, "within the grace", "1 second"] as const,
      [name, "after it", "11 seconds"] as const,
    ]),
  )("a rotated token of %s is SESSION_INVALID %s, and writes nothing", async (name, _, ago) => {
    const service = await startService(transport);
    const signIn = await signInBy(service);
    const signedIn = await signIn();
    await refreshed(service, signedIn.refreshToken);
    await change(service, signedIn.sessionId, sql.fragment`refreshed_utc = refreshed_utc - ${ago}::interval`);
    const refreshToken = await spoilers[name]!(service, signedIn, signedIn);
    const before = await rowOf(service, signedIn.sessionId);
    await expectRefusal(service.auth.refreshSession({ refreshToken }), "SESSION_INVALID");
    expect(await rowOf(service, signedIn.sessionId)).toEqual(before);
    expect(await actionsOf(service, signedIn.sessionId)).toEqual(["auth.session.create"]);
  });

  test("a service of another tenant gets SESSION_INVALID and ends nothing, and one of the tenant refreshes", async () => {
    const service = await startService(transport);
    const { refreshToken, sessionId, tenantId } = await (await signInBy(service))();
    const stranger = await service.addService(["auth.login"], await service.addTenant());
    const before = await rowOf(service, sessionId);
    await expectRefusal(stranger.auth.refreshSession({ refreshToken }), "SESSION_INVALID");
    expect(await stranger.auth.logout({ refreshToken })).toMatchObject({});
    expect(await rowOf(service, sessionId)).toEqual(before);
    const own = await service.addService(["auth.login"], tenantId);
    expect((await refreshed(own, refreshToken)).sessionId).toBe(sessionId);
  });

  test("a logout ends the session once, whichever generation of its tokens it shows", async () => {
    const service = await startService(transport);
    const { refreshToken, sessionId } = await (await signInBy(service))();
    const { accessToken, refreshToken: second } = await refreshed(service, refreshToken);
    await refreshed(service, second);
    await service.auth.logout({ refreshToken });
    const row = await rowOf(service, sessionId);
    expect(row).toMatchObject({ end_reason_code: "logged_out", generation: 2 });
    expect((await service.auth.verifyAccessToken({ accessToken })).active).toBe(false);
    await service.auth.logout({ refreshToken: second });
    expect(await rowOf(service, sessionId)).toEqual(row);
    expect(await actionsOf(service, sessionId)).toEqual(["auth.session.revoke", "auth.session.create"]);
  });

  test.each([
    "a token of no form",
    "an unknown session",
    "a forged MAC",
    "another session's MAC",
    "a session idle for too long",
  ])("a logout with %s is answered, and ends nothing", async (name) => {
    const service = await startService(transport);
    const signIn = await signInBy(service);
    const signedIn = await signIn();
    const token = await spoilers[name]!(service, signedIn, await signIn());
    await service.auth.logout({ refreshToken: token });
    expect(await rowOf(service, signedIn.sessionId)).toMatchObject({ revoked_utc: null });
    expect(await actionsOf(service, signedIn.sessionId)).toEqual(["auth.session.create"]);
  });
});

const peppers = [1, 2].map((version) => ({ version, key: Buffer.alloc(32, version) }));

test("a rotation's answer is the same again from a server that has a newer pepper", async () => {
  const former = await launchService("grpc", { peppers: peppers.slice(0, 1) });
  const newer = await launchService("grpc", { peppers, databaseUrl: former.databaseUrl });
  const { refreshToken } = await (await signInBy(former, peppers.slice(0, 1)))();
  const { refreshToken: second } = await refreshed(former, refreshToken);
  expect((await refreshed(newer.as(former.rootToken), refreshToken)).refreshToken).toBe(second);
  await newer.stop();
  await former.stop();
});

test("a rotation under a pepper that is gone again answers nobody, and leaves the session", async () => {
  const former = await launchService("grpc", { peppers: peppers.slice(0, 1) });
  const newer = await launchService("grpc", { peppers, databaseUrl: former.databaseUrl });
  const { refreshToken } = await (await signInBy(former, peppers.slice(0, 1)))();
  const rotated = await refreshed(newer.as(former.rootToken), refreshToken);
  await expectRefusal(former.auth.refreshSession({ refreshToken }), "SESSION_INVALID");
  await refreshed(newer.as(former.rootToken), rotated.refreshToken);
  await newer.stop();
  await former.stop();
});

test("sessions outlive a change of the pepper, and leave the former one as they are used", async () => {
  const service = await launchService("grpc", { peppers });
  const signIn = await signInBy(service, peppers.slice(0, 1));
  const { refreshToken, sessionId } = await signIn();
  expect((await rowOf(service, sessionId)).refresh_token_hash_text).toMatch(/^1:/);
  const { refreshToken: second } = await refreshed(service, refreshToken);
  expect((await rowOf(service, sessionId)).refresh_token_hash_text).toMatch(/^2:/);
  expect((await refreshed(service, refreshToken)).refreshToken).toBe(second);
  expect((await refreshed(service, second)).refreshToken).toMatch(/_2_/);
  const idle = await signIn();
  await service.stop();

  const later = await launchService("grpc", { peppers: peppers.slice(1) });
  const former = await (await signInBy(later, peppers.slice(0, 1)))();
  await expectRefusal(later.auth.refreshSession({ refreshToken: former.refreshToken }), "SESSION_INVALID");
  await expectRefusal(later.auth.refreshSession({ refreshToken: idle.refreshToken }), "SESSION_INVALID");
  await later.stop();
});
