import { pbkdf2Sync, randomUUID, scryptSync } from "node:crypto";
import { ConnectError } from "@connectrpc/connect";
import { hashSync as argon2Sync } from "@node-rs/argon2";
import { hashSync as bcryptSync } from "bcryptjs";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { noOnes, someone } from "../support/logins.ts";
import {
  CHEAP_PREFIX,
  OTHER_PASSWORD,
  PASSWORD,
  argon2Kind,
  liveSessionIds,
  plantHash,
  startCheapService,
  storedHash,
} from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { launchService, transports } from "../support/service.ts";
import { actionsOf, addUser, eventsOf, uniqueEmail, uniquePhone } from "../support/users.ts";

const SALT = Buffer.from("0123456789abcdef");
const b64 = (bytes: Buffer) => bytes.toString("base64").replace(/=+$/, "");
const ab64 = (bytes: Buffer) => b64(bytes).replaceAll("+", ".");
const COST = { memoryCost: 64, timeCost: 2, parallelism: 1 };

/** As other systems wrote them. */
const FOREIGN: Readonly<Record<string, (password: string) => string>> = {
  "argon2id of other parameters": (password) => argon2Sync(password, COST),
  argon2i: (password) => argon2Sync(password, { ...COST, ...argon2Kind("argon2i", 19) }),
  "bcrypt 2b": (password) => bcryptSync(password, 4),
  "bcrypt 2y": (password) => bcryptSync(password, 4).replace("$2b$", "$2y$"),
  scrypt: (password) =>
    `$scrypt$ln=4,r=8,p=1$${b64(SALT)}$${b64(scryptSync(password, SALT, 32, { N: 16, r: 8, p: 1 }))}`,
  "pbkdf2-sha256 of passlib": (password) =>
    `$pbkdf2-sha256$1000$${ab64(SALT)}$${ab64(pbkdf2Sync(password, SALT, 1_000, 32, "sha256"))}`,
  "pbkdf2-sha512 of PHC": (password) =>
    `$pbkdf2-sha512$i=1000,l=64$${b64(SALT)}$${b64(pbkdf2Sync(password, SALT, 1_000, 64, "sha512"))}`,
};

describe.each(transports)("%s", (transport) => {
  test("who shows the right password gets the user and the tokens of a session", async () => {
    const server = await startCheapService(transport);
    const { userId, login } = await someone(server);
    const client = { userAgent: "Browser/1.0", ip: "192.0.2.7" };
    const { user, tokens } = await server.auth.loginWithPassword({ ...login, password: PASSWORD, client });
    expect(user).toMatchObject({ userId, tenantId: login.tenantId, state: UserState.ACTIVE });
    expect(await liveSessionIds(server, userId)).toEqual([tokens?.sessionId]);
    expect(await server.auth.verifyAccessToken({ accessToken: tokens?.accessToken ?? "" })).toMatchObject({
      active: true,
      userId,
      sessionId: tokens?.sessionId,
    });
    const [event] = await eventsOf(server, tokens?.sessionId ?? "");
    expect(event).toMatchObject({ action: "auth.session.create", payload: { method: "password", user_id: userId } });
    const row = await server.pool.one(sql.unsafe`
      SELECT client_user_agent_text, client_ip_text FROM refresh_sessions WHERE session_id = ${tokens!.sessionId}::uuid`);
    expect(row).toEqual({ client_user_agent_text: client.userAgent, client_ip_text: client.ip });
  });

  test("a contact signs in however it is written", async () => {
    const server = await startCheapService(transport);
    const [email, phone] = [uniqueEmail(), uniquePhone()];
    const { tenantId, userId } = await addUser(server, { email, phone, password: PASSWORD });
    for (const identifier of [
      { case: "email", value: `  ${email.toUpperCase()} ` } as const,
      { case: "phone", value: phone } as const,
      { case: "phone", value: ` ${phone.slice(0, 3)} (${phone.slice(3, 6)}) ${phone.slice(6)}` } as const,
    ]) {
      const login = { tenantId: tenantId.toUpperCase(), identifier, password: PASSWORD };
      expect((await server.auth.loginWithPassword(login)).user?.userId).toBe(userId);
    }
    expect(await liveSessionIds(server, userId)).toHaveLength(3);
  });

  test("composed and decomposed forms of a password sign in alike", async () => {
    const server = await startCheapService(transport);
    const { login, userId } = await someone(server);
    for (const form of ["NFC", "NFD", "NFKC", "NFKD"]) {
      await server.auth.loginWithPassword({ ...login, password: PASSWORD.normalize(form) });
    }
    expect(await liveSessionIds(server, userId)).toHaveLength(4);
  });

  test("whatever is wrong with the credentials, the answer is one, and nothing is written", async () => {
    const server = await startCheapService(transport);
    const logins = await noOnes(server);
    const answers = [];
    for (const [who, login] of Object.entries(logins)) {
      const password = who === "known" ? OTHER_PASSWORD : PASSWORD;
      const { error, metadata } = await expectRefusal(
        server.auth.loginWithPassword({ ...login, password }),
        "INVALID_CREDENTIALS",
      );
      answers.push({ message: error.rawMessage, metadata: Object.keys(metadata) });
    }
    for (const answer of answers) expect(answer).toEqual(answers[0]);
    const { tenantId } = logins.known;
    const sessions = await server.pool.any(sql.unsafe`
      SELECT session_id FROM refresh_sessions WHERE tenant_id = ${tenantId}::uuid`);
    expect(sessions).toEqual([]);
  });

  test.each([
    [{ identifier: { case: "email", value: "ann" } }, "email"],
    [{ identifier: { case: "phone", value: "12345" } }, "phone"],
    [{ identifier: { case: "email", value: "" } }, "email"],
    [{ identifier: { case: undefined } }, "identifier"],
    [{ password: "" }, "password"],
    [{ password: "x".repeat(257) }, "password"],
    [{ client: { ip: "127.1" } }, "client.ip"],
    [{ client: { ip: "fe80::1%eth0" } }, "client.ip"],
    [{ tenantId: "acme" }, "tenant_id"],
  ] as const)("a login with %j names the field %s", async (part, field) => {
    const server = await startCheapService(transport);
    const request = {
      tenantId: randomUUID(),
      identifier: { case: "email", value: "ann@example.com" } as const,
      password: PASSWORD,
      ...part,
    };
    const { fields } = await expectRefusal(server.auth.loginWithPassword(request), "INVALID_REQUEST");
    expect(fields).toEqual([field]);
  });

  test("a login needs its permission, and a tenant that is known and not suspended", async () => {
    const server = await startCheapService(transport);
    const { login, tenantId, userId } = await someone(server);
    const right = { ...login, password: PASSWORD };
    const { auth } = await server.addService(["auth.user.*"]);
    await expectRefusal(auth.loginWithPassword(right), "PERMISSION_MISSING");
    await expectRefusal(server.auth.loginWithPassword({ ...right, tenantId: randomUUID() }), "TENANT_NOT_FOUND");
    const otherTenant = { ...right, tenantId: await server.addTenant() };
    await expectRefusal(server.auth.loginWithPassword(otherTenant), "INVALID_CREDENTIALS");
    await server.org.suspendTenant({ tenantId });
    for (const password of [PASSWORD, OTHER_PASSWORD]) {
      await expectRefusal(server.auth.loginWithPassword({ ...right, password }), "TENANT_SUSPENDED");
    }
    expect(await liveSessionIds(server, userId)).toEqual([]);
    await server.org.activateTenant({ tenantId });
    await server.auth.loginWithPassword(right);
  });

  test.each(Object.entries(FOREIGN))("a hash of %s signs in once, and then is one of ours", async (_, foreign) => {
    const server = await startCheapService(transport);
    const { userId, login } = await someone(server);
    const planted = foreign(PASSWORD);
    await plantHash(server, userId, planted);
    await expectRefusal(server.auth.loginWithPassword({ ...login, password: OTHER_PASSWORD }), "INVALID_CREDENTIALS");
    expect(await storedHash(server, userId)).toBe(planted);
    await server.auth.loginWithPassword({ ...login, password: PASSWORD });
    const ours = await storedHash(server, userId);
    expect(ours).toContain(CHEAP_PREFIX);
    await server.auth.loginWithPassword({ ...login, password: PASSWORD });
    expect(await storedHash(server, userId)).toBe(ours);
  });

  test("a password that an older system hashed as it was typed signs in, and then in either form", async () => {
    const server = await startCheapService(transport);
    const { userId, login } = await someone(server);
    const typed = PASSWORD.normalize("NFD");
    await plantHash(server, userId, bcryptSync(typed, 4));
    await expectRefusal(server.auth.loginWithPassword({ ...login, password: PASSWORD }), "INVALID_CREDENTIALS");
    await server.auth.loginWithPassword({ ...login, password: typed });
    await server.auth.loginWithPassword({ ...login, password: PASSWORD });
  });

  test("20 logins at once with a hash that is to be renewed all succeed, and renew it once", async () => {
    const server = await startCheapService(transport);
    const { userId, login } = await someone(server);
    await plantHash(server, userId, bcryptSync(PASSWORD, 4));
    const logins = Array.from({ length: 20 }, () => server.auth.loginWithPassword({ ...login, password: PASSWORD }));
    const answers = await Promise.all(logins);
    expect(new Set(answers.map(({ tokens }) => tokens?.sessionId)).size).toBe(20);
    expect(await liveSessionIds(server, userId)).toHaveLength(20);
    expect(await storedHash(server, userId)).toContain(CHEAP_PREFIX);
    expect(await actionsOf(server, userId)).toEqual(["auth.user.create"]);
  });
});

describe("with real parameters", () => {
  test("a cancelled login opens no session", async () => {
    const server = await launchService("grpc", { env: { PASSWORD_HASH_THREADS: "1", PASSWORD_HASH_PASSES: "20" } });
    const { login, userId } = await someone(server);
    const controller = new AbortController();
    const options = { signal: controller.signal };
    const first = server.auth.loginWithPassword({ ...login, password: PASSWORD });
    const cancelled = Array.from({ length: 5 }, () =>
      server.auth.loginWithPassword({ ...login, password: PASSWORD }, options).catch(() => undefined),
    );
    await server.auth.getUser({ tenantId: login.tenantId, key: { case: "userId", value: userId } });
    controller.abort();
    await Promise.all(cancelled);
    const { tokens } = await first;
    const last = await server.auth.loginWithPassword({ ...login, password: PASSWORD });
    expect(await liveSessionIds(server, userId)).toEqual([tokens!.sessionId, last.tokens!.sessionId].sort());
    await server.stop();
  });
});

test("over HTTP no cache keeps an answer, nor a refusal", async () => {
  const server = await startCheapService("connect");
  const { login } = await someone(server);
  let kept: string | null = null;
  const onHeader = (header: Headers) => void (kept = header.get("cache-control"));
  await server.auth.loginWithPassword({ ...login, password: PASSWORD }, { onHeader });
  expect(kept).toBe("no-store");
  const refused = server.auth.loginWithPassword({ ...login, password: OTHER_PASSWORD });
  const error = ConnectError.from(await refused.catch((reason: unknown) => reason));
  expect(error.metadata.get("cache-control")).toBe("no-store");
});
