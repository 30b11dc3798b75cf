import { pbkdf2Sync, randomUUID, scryptSync } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { hashSync as argon2Sync } from "@node-rs/argon2";
import { sql } from "slonik";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { IdentityProvider, UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { startDatabaseProxy } from "../support/database-proxy.ts";
import { createDatabase } from "../support/database.ts";
import { BCRYPT, FULL, type Row, importRows, importedIds, outcomesOf } from "../support/imports.ts";
import { PASSWORD } from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, launchService, startService, transports } from "../support/service.ts";
import { countUsers } from "../support/users.ts";

const SALT = Buffer.from("0123456789abcdef");
const b64 = (bytes: Buffer) => bytes.toString("base64").replace(/=+$/, "");
const CHEAP = { memoryCost: 64, timeCost: 1, parallelism: 1 };

const HASHES: Readonly<Record<string, string>> = {
  argon2id: argon2Sync(PASSWORD, { ...CHEAP, timeCost: 2 }),
  argon2i: "$argon2i$v=19$m=64,t=1,p=1$LhZ72Y1/wlr+yXgRSFLv8g$MRBnCBjtVn2HP6jG0bAi7CMcejtebQssxIJNi8Tb+4s",
  bcrypt: BCRYPT,
  scrypt: `$scrypt$ln=4,r=8,p=1$${b64(SALT)}$${b64(scryptSync(PASSWORD, SALT, 32, { N: 16, r: 8, p: 1 }))}`,
  "pbkdf2-sha256": `$pbkdf2-sha256$i=1000$${b64(SALT)}$${b64(pbkdf2Sync(PASSWORD, SALT, 1_000, 32, "sha256"))}`,
  "pbkdf2-sha512": `$pbkdf2-sha512$1000$${b64(SALT)}$${b64(pbkdf2Sync(PASSWORD, SALT, 1_000, 64, "sha512"))}`,
};

const shuffled = <T>(values: readonly T[]): T[] =>
  values
    .map((value) => ({ value, place: Math.random() }))
    .sort((a, b) => a.place - b.place)
    .map(({ value }) => value);

describe.each(transports)("%s", (transport) => {
  test("a person moves with all that is known of it", async () => {
    const server = await startService(transport);
    const { auth } = server;
    const tenantId = await server.addTenant();
    const userId = randomUUID();
    expect(await importRows(server, tenantId, [{ ...FULL, userId: userId.toUpperCase() }])).toEqual({
      ids: [userId],
      outcomes: ["CREATED"],
    });
    const { user } = await auth.getUser({ tenantId, key: { case: "email", value: "ann@example.com" } });
    expect(user).toMatchObject({
      userId,
      tenantId,
      email: "ann@example.com",
      phone: "+14155552671",
      displayName: "Ann",
      state: UserState.INACTIVE,
      emailVerified: true,
      phoneVerified: true,
      createTime: FULL.createTime,
    });
    const { identities } = await auth.listIdentities({ tenantId, userId });
    expect(new Map(identities.map(({ provider, providerSubject }) => [provider, providerSubject]))).toEqual(
      new Map([
        [IdentityProvider.PASSWORD, undefined],
        [IdentityProvider.GOOGLE, FULL.googleSubject],
      ]),
    );
    expect(await importedIds(server, tenantId)).toEqual([userId]);
  });

  test("what a row leaves out is unknown: an active user of now, with nothing verified", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const before = Date.now();
    const { ids } = await importRows(server, tenantId.toUpperCase(), [{ phone: "+14155552671" }]);
    const [userId = ""] = ids;
    expect(userId[14]).toBe("7");
    const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value: userId } });
    expect(user).toMatchObject({ state: UserState.ACTIVE, emailVerified: false, phoneVerified: false });
    expect([user?.email, user?.displayName]).toEqual([undefined, undefined]);
    expect(Number(user?.createTime?.seconds)).toBeGreaterThanOrEqual(Math.floor(before / 1_000) - 1);
    expect((await server.auth.listIdentities({ tenantId, userId })).identities).toEqual([]);
  });

  test("times of every age are kept", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const times = ["0100-01-01T00:00:00Z", "1969-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"].map(Date.parse);
    const rows = times.map((ms, n) => ({ email: `p${n}@example.com`, createTime: timestampFromMs(ms) }));
    const { ids } = await importRows(server, tenantId, rows);
    for (const [n, value] of ids.entries()) {
      const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value } });
      expect(user?.createTime).toEqual(rows[n]?.createTime);
    }
    expect(await outcomesOf(server, tenantId, rows)).toEqual(rows.map(() => "UNCHANGED"));
  });

  test("a time is cut to the millisecond", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const row = { email: "ann@example.com", createTime: { seconds: 1n, nanos: 1_999_999 } };
    const { ids } = await importRows(server, tenantId, [row]);
    const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value: ids[0] ?? "" } });
    expect(user?.createTime).toMatchObject({ seconds: 1n, nanos: 1_000_000 });
    expect(await outcomesOf(server, tenantId, [row])).toEqual(["UNCHANGED"]);
  });

  test("a repeat writes nothing, and finds who has no id in its row by its contact", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const rows: Row[] = [
      { ...FULL, userId: randomUUID() },
      { email: "bob@example.com", displayName: "Bob" },
      { phone: "+14155552672" },
    ];
    const first = await importRows(server, tenantId, rows);
    // Another hash, a contact written otherwise, and what says less are the same content.
    const again = [{ ...rows[0], passwordHash: HASHES["scrypt"] }, { email: "BOB@example.com " }, rows[2]] as Row[];
    for (const repeat of [rows, again, shuffled(rows)]) {
      const second = await importRows(server, tenantId, repeat);
      expect(second.outcomes).toEqual(rows.map(() => "UNCHANGED"));
      expect(second.ids.toSorted()).toEqual(first.ids.toSorted());
    }
    expect(await outcomesOf(server, tenantId.toUpperCase(), rows)).toEqual(rows.map(() => "UNCHANGED"));
    expect((await importedIds(server, tenantId)).toSorted()).toEqual(first.ids.toSorted());
  });

  test("a user who has changed since is not overwritten", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const userId = randomUUID();
    const [chosen, found] = [
      { userId, email: "ann@example.com", displayName: "Ann" },
      { email: "bob@example.com", displayName: "Bob" },
    ];
    const { ids } = await importRows(server, tenantId, [chosen, found]);
    for (const id of ids) await server.auth.updateUser({ tenantId, userId: id, displayName: "Married" });
    const repeat = await importRows(server, tenantId, [chosen, found]);
    expect(repeat).toEqual({ ids: [userId, ""], outcomes: ["USER_ID_TAKEN", "EMAIL_TAKEN"] });
    for (const value of ids) {
      const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value } });
      expect(user?.displayName).toBe("Married");
    }
    await server.auth.eraseUser({ tenantId, userId });
    expect(await outcomesOf(server, tenantId, [chosen])).toEqual(["USER_ID_TAKEN"]);
  });

  test("of 20 imports of the same people at once, in any order, each person is created once", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const rows: Row[] = Array.from({ length: 60 }, (_, n) => ({
      ...(n % 2 === 0 && { userId: randomUUID() }),
      ...(n % 3 !== 0 && { email: `person${n}@example.com` }),
      ...(n % 3 !== 1 && { phone: `+1415555${2_000 + n}` }),
      ...(n % 5 === 0 && { googleSubject: `subject-${n}` }),
      displayName: `Person ${n}`,
    }));
    const answers = await Promise.all(Array.from({ length: 20 }, () => importRows(server, tenantId, shuffled(rows))));
    const created = answers.flatMap(({ ids, outcomes }) => ids.filter((_, n) => outcomes[n] === "CREATED"));
    expect(created).toHaveLength(rows.length);
    for (const { ids, outcomes } of answers) {
      expect(outcomes.filter((outcome) => outcome !== "CREATED" && outcome !== "UNCHANGED")).toEqual([]);
      expect(ids.toSorted()).toEqual(created.toSorted());
    }
    expect((await importedIds(server, tenantId)).toSorted()).toEqual(created.toSorted());
    expect(await countUsers(server, tenantId)).toBe(rows.length);
  });
});

describe.each(transports)("%s, with cheap hashes", (transport) => {
  let server: TestService;
  const env = { PASSWORD_HASH_MEMORY_KIB: "64", PASSWORD_HASH_PASSES: "1", THROTTLES: "off" };
  beforeAll(async () => {
    server = await launchService(transport, { env });
  });
  afterAll(() => server.stop());

  const storedHash = (userId: string) =>
    server.pool.oneFirst(sql.type(z.object({ password_hash_text: z.string() }))`
      SELECT password_hash_text FROM user_identities
      WHERE user_id = ${userId}::uuid AND ident_provider_code = 'password'`);

  test.each(Object.entries(HASHES))(
    "a password hashed by %s is kept as it is, signs in, and is hashed anew",
    async (_, hash) => {
      const tenantId = await server.addTenant();
      const { ids } = await importRows(server, tenantId, [{ email: "ann@example.com", passwordHash: hash }]);
      const [userId = ""] = ids;
      expect(await storedHash(userId)).toBe(hash);
      const login = (password: string) =>
        server.auth.loginWithPassword({ tenantId, identifier: { case: "email", value: "ann@example.com" }, password });
      await expectRefusal(login(`${PASSWORD}!`), "INVALID_CREDENTIALS");
      expect(await storedHash(userId)).toBe(hash);
      expect((await login(PASSWORD)).user?.userId).toBe(userId);
      expect(await storedHash(userId)).toMatch(/^\$argon2id\$v=19\$m=64,t=1,p=1\$/);
      expect((await login(PASSWORD)).user?.userId).toBe(userId);
      expect(await outcomesOf(server, tenantId, [{ email: "ann@example.com", passwordHash: hash }])).toEqual([
        "UNCHANGED",
      ]);
    },
  );
});

test("a thousand rows take as many statements as one", async () => {
  const database = await createDatabase();
  const proxy = await startDatabaseProxy(database.url);
  // Of what is prepared the text was sent with the tenant: a connection then hears its name alone.
  const env = { DATABASE_POOL_MAX: "1" };
  const server = await launchService("grpc", { databaseUrl: proxy.url, env });
  const tenantId = await server.addTenant();
  const statements = async (from: number, count: number) => {
    const rows = Array.from({ length: count }, (_, n) => ({
      email: `person${from + n}@example.com`,
      passwordHash: BCRYPT,
      googleSubject: `subject-${from + n}`,
    }));
    const before = proxy.sent().length;
    expect(await outcomesOf(server, tenantId, rows)).toEqual(rows.map(() => "CREATED"));
    return [
      ...proxy
        .sent()
        .slice(before)
        .matchAll(/INSERT INTO (users|user_identities)|insert-events|WITH met/g),
    ].map(([text]) => text);
  };
  const one = await statements(0, 1);
  expect(one).toHaveLength(5);
  expect(await statements(1, 1_000)).toEqual(one);
  await server.stop();
  await proxy.close();
  await database.drop();
});
