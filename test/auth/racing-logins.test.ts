import { hashSync as argon2Sync } from "@node-rs/argon2";
import { sql } from "slonik";
import { expect, test } from "vitest";
import { z } from "zod";
import { overBoth, raceFor } from "../support/both-transports.ts";
import { heldUp } from "../support/held-up.ts";
import { untilSomebodyWaits } from "../support/lock-waiters.ts";
import { OTHER_PASSWORD, PASSWORD, liveSessionIds, startCheapService, storedHash } from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import type { TestService } from "../support/service.ts";
import { lockUser } from "../support/user-rows.ts";
import { addUser, plantUsers, uniqueEmail } from "../support/users.ts";

const ROUNDS = 100;
const AT_ONCE = 5;

interface Person {
  readonly tenantId: string;
  readonly userId: string;
  readonly email: string;
}

/** Users of one tenant with a password. For every other one its hash is another's than ours, to be renewed by a login. */
const plantPeople = async (server: TestService, count: number): Promise<readonly Person[]> => {
  const tenantId = await server.addTenant();
  const { userId: first } = await addUser(server, { tenantId, password: PASSWORD });
  const foreign = argon2Sync(PASSWORD, { memoryCost: 64, timeCost: 2, parallelism: 1 });
  const hashes = [foreign, (await storedHash(server, first)) ?? ""];
  const emails = Array.from({ length: count }, uniqueEmail);
  const userIds = await plantUsers(
    server,
    tenantId,
    emails.map((email) => ({ email, phone: null, name: null })),
  );
  await server.pool.query(sql.unsafe`
    INSERT INTO user_identities (ident_id, user_id, ident_provider_code, password_hash_text)
    SELECT gen_random_uuid(), p.user_id, 'password', p.hash
    FROM unnest(${sql.array(userIds, "uuid")}, ${sql.array(
      userIds.map((_, n) => hashes[n % 2]!),
      "text",
    )}) AS p (user_id, hash)`);
  return userIds.map((userId, n) => ({ tenantId, userId, email: emails[n]! }));
};

const logIn = ({ auth }: TestService, { tenantId, email }: Person) =>
  auth.loginWithPassword({ tenantId, identifier: { case: "email", value: email }, password: PASSWORD });

const start = async () => overBoth(await startCheapService("grpc"));

const liveRow = z.object({ session_id: z.string() });

const liveSessionsIn = ({ pool }: TestService, tenantId: string) =>
  pool.any(sql.type(liveRow)`
    SELECT session_id FROM refresh_sessions
    WHERE tenant_id = ${tenantId}::uuid AND revoked_utc IS NULL AND expiry_utc > now()`);

const ENDS: Readonly<Record<string, (server: TestService, person: Person) => Promise<unknown>>> = {
  DeactivateUser: ({ auth }, { tenantId, userId }) => auth.deactivateUser({ tenantId, userId }),
  EraseUser: ({ auth }, { tenantId, userId }) => auth.eraseUser({ tenantId, userId }),
  SetPassword: ({ auth }, { tenantId, userId }) => auth.setPassword({ tenantId, userId, newPassword: OTHER_PASSWORD }),
};

test.each(Object.entries(ENDS))("a login leaves no live session beside %s", async (_, end) => {
  const server = await start();
  const people = await plantPeople(server, ROUNDS);
  let lost = 0;
  const race = async (person: Person, round: number) => {
    const logins = Array.from({ length: 4 }, () => logIn(server, person));
    // By its hash a login is behind whatever was asked with it.
    if (round % 2 === 0) await Promise.race(logins);
    const [ended, ...settled] = await Promise.allSettled([end(server, person), ...logins]);
    expect(ended.status).toBe("fulfilled");
    lost += settled.filter(({ status }) => status === "rejected").length;
  };
  await raceFor(people, AT_ONCE, race);
  expect(await liveSessionsIn(server, people[0]!.tenantId)).toEqual([]);
  // Both outcomes were met, or the race was none.
  expect(lost).toBeGreaterThan(0);
  expect(lost).toBeLessThan(4 * ROUNDS);
});

test("RevokeAllSessions leaves none that was answered before it was asked", async () => {
  const server = await start();
  const races = async (person: Person) => {
    const { tenantId, userId } = person;
    for (let round = 0; round < ROUNDS / AT_ONCE; round++) {
      const answered: string[] = [];
      const logins = Array.from({ length: 6 }, async () => {
        const { tokens } = await logIn(server, person);
        answered.push(tokens!.sessionId);
      });
      await Promise.race(logins);
      const before = [...answered];
      await server.auth.revokeAllSessions({ tenantId, userId });
      await Promise.all(logins);
      const live = new Set(await liveSessionIds(server, userId));
      expect(before.filter((sessionId) => live.has(sessionId))).toEqual([]);
    }
  };
  await Promise.all((await plantPeople(server, AT_ONCE)).map(races));
});

test("in a tenant that is suspended while a login is under way, no session opens", async () => {
  const server = await start();
  const person = (await plantPeople(server, 1))[0]!;
  const { tenantId, userId } = person;
  const { answered } = await server.pool.transaction(async (tx) => {
    await tx.query(lockUser({ userId }));
    const answer = expectRefusal(logIn(server, person), "TENANT_SUSPENDED");
    await untilSomebodyWaits(tx);
    await server.org.suspendTenant({ tenantId });
    return { answered: answer };
  });
  await answered;
  expect(await liveSessionIds(server, userId)).toEqual([]);
});

test("a contact that the user lets go of while a login is under way signs nobody in", async () => {
  const server = await start();
  const person = (await plantPeople(server, 1))[0]!;
  const { userId } = person;
  const moved = { ...person, email: uniqueEmail() };
  const login = heldUp(
    server,
    lockUser(person),
    () => logIn(server, person),
    (tx) => tx.query(sql.unsafe`UPDATE users SET email_addr = ${moved.email} WHERE user_id = ${userId}::uuid`),
  );
  await expectRefusal(login, "INVALID_CREDENTIALS");
  expect(await liveSessionIds(server, userId)).toEqual([]);
  expect((await logIn(server, moved)).user?.userId).toBe(userId);
});
