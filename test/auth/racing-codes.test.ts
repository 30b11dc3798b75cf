import { sql } from "slonik";
import { expect, test } from "vitest";
import { attemptsOf, launchForCodes, otherCode, requestCode, startForCodes } from "../support/codes.ts";
import { untilSomebodyWaits } from "../support/lock-waiters.ts";
import { PASSWORD, liveSessionIds } from "../support/passwords.ts";
import { refused } from "../support/refusals.ts";
import type { TestService } from "../support/service.ts";
import { lockUser } from "../support/user-rows.ts";
import { addUser } from "../support/users.ts";

/** A user with an e-mail, and a code to sign in by it. */
const someone = async (server: TestService) => {
  const { tenantId, userId, email = "" } = await addUser(server, { password: PASSWORD });
  return { tenantId, userId, sent: await requestCode(server, { tenantId, destination: email }) };
};

test("of 60 uses of a right code at once over two replicas one wins", async () => {
  const env = { THROTTLES: "off", OTP_ATTEMPT_MAX: "10" };
  const first = await launchForCodes("grpc", env);
  const second = (await launchForCodes("grpc", env, first.databaseUrl)).as(first.rootToken);
  const { userId, sent } = await someone(first);
  const settled = await Promise.allSettled(
    Array.from({ length: 60 }, (_, n) => (n % 2 === 0 ? first : second).auth.loginWithOtp(sent)),
  );
  expect(settled.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  expect(await liveSessionIds(first, userId)).toHaveLength(1);
});

test("a newer code ends one that was right and not yet spent", async () => {
  const server = await startForCodes("grpc");
  const { userId, sent } = await someone(server);
  const { login } = await server.pool.transaction(async (tx) => {
    await tx.query(lockUser({ userId }));
    const using = refused(server.auth.loginWithOtp(sent));
    await untilSomebodyWaits(tx);
    await tx.query(sql.unsafe`
      INSERT INTO otp_codes (otp_id, tenant_id, user_id, destination_text, channel_code, purpose_code, code_hash_text,
        expiry_utc)
      SELECT gen_random_uuid(), tenant_id, user_id, destination_text, channel_code, purpose_code, '1:x', expiry_utc
      FROM otp_codes WHERE otp_id = ${sent.otpId}::uuid`);
    return { login: using };
  });
  expect((await login).reason).toBe("INVALID_CODE");
  expect(await attemptsOf(server, sent)).toEqual({ attempt_count: 1, consumed: false });
  expect(await liveSessionIds(server, userId)).toEqual([]);
});

test("of 1,000 guesses at once five are compared", async () => {
  const server = await launchForCodes("grpc", { THROTTLES: "off" });
  const { sent, userId } = await someone(server);
  const guesses = Array.from({ length: 1_000 }, (_, n) => ({ ...sent, code: otherCode(sent.code, n) }));
  const settled = await Promise.allSettled(guesses.reverse().map((guess) => server.auth.loginWithOtp(guess)));
  const wins = settled.filter(({ status }) => status === "fulfilled").length;
  expect(wins).toBeLessThanOrEqual(1);
  const { attempt_count: attempts } = await attemptsOf(server, sent);
  expect(attempts).toBe(5);
  expect(await liveSessionIds(server, userId)).toHaveLength(wins);
});

test("no session outlives a deactivation, whichever was first", async () => {
  const server = await launchForCodes("grpc", { THROTTLES: "off" });
  const people = await Promise.all(Array.from({ length: 20 }, () => someone(server)));
  await Promise.all(
    people.map(async ({ tenantId, userId, sent }) => {
      const deactivate = server.auth.deactivateUser({ tenantId, userId });
      await Promise.allSettled([server.auth.loginWithOtp(sent), deactivate]);
      await deactivate;
      expect(await liveSessionIds(server, userId)).toEqual([]);
    }),
  );
});
