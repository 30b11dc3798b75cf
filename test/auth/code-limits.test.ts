import { timestampMs } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { sql } from "slonik";
import { describe, expect, test, vi } from "vitest";
import { OtpChannel, OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import { RetryInfoSchema } from "../../src/gen/google/rpc/error_details_pb.ts";
import { destinationsOf, launchForCodes, passTime, requestCode, startForCodes } from "../support/codes.ts";
import { lockWaiters } from "../support/lock-waiters.ts";
import { type Refused, expectRefusal } from "../support/refusals.ts";
import { transports } from "../support/service.ts";
import { addUser, uniqueEmail } from "../support/users.ts";

const { EMAIL } = OtpChannel;
const { LOGIN, RESET_PASSWORD, VERIFY_EMAIL } = OtpPurpose;
const MINUTE_MS = 60_000;

const retryAfterMs = ({ error }: Refused) => {
  const [info] = error.findDetails(RetryInfoSchema);
  return Number(info?.retryDelay?.seconds ?? 0n) * 1_000 + (info?.retryDelay?.nanos ?? 0) / 1e6;
};

describe.each(transports)("%s", (transport) => {
  test("for a destination and purpose there is one request in 60 seconds, whoever has the destination", async () => {
    const server = await startForCodes(transport);
    const tenantId = await server.addTenant();
    for (const destination of Object.values(await destinationsOf(server, tenantId))) {
      await requestCode(server, { tenantId, destination });
      const again = server.auth.requestOtp({ tenantId, channel: EMAIL, destination, purpose: LOGIN });
      const wait = retryAfterMs(await expectRefusal(again, "RATE_LIMITED"));
      expect(wait).toBeGreaterThan(50_000);
      expect(wait).toBeLessThanOrEqual(MINUTE_MS);
      await requestCode(server, { tenantId, destination, purpose: RESET_PASSWORD });
    }
    const metrics = await (await fetch(`http://127.0.0.1:${server.httpPort}/metrics`)).text();
    expect(metrics).toMatch(/^throttle_refused_total\{act="code-request"\} [5-9]/m);
    expect(metrics).toMatch(/^password_hash_queue_length 0$/m);
  });

  test("for a destination there are five requests in an hour, and the fifth says when there is another", async () => {
    const server = await launchForCodes(transport, { THROTTLES: "off" });
    const tenantId = await server.addTenant();
    for (const destination of [(await addUser(server, { tenantId })).email!, uniqueEmail()]) {
      const request = (purpose: OtpPurpose) =>
        server.auth.requestOtp({ tenantId, channel: EMAIL, destination, purpose });
      await request(LOGIN);
      await request(VERIFY_EMAIL);
      await passTime(server, MINUTE_MS);
      await request(LOGIN);
      await request(VERIFY_EMAIL);
      const { nextRequestTime } = await request(RESET_PASSWORD);
      expect(timestampMs(nextRequestTime!) - Date.now()).toBeGreaterThan(58 * MINUTE_MS);
      await passTime(server, MINUTE_MS);
      const wait = retryAfterMs(await expectRefusal(request(LOGIN), "RATE_LIMITED"));
      expect(wait).toBeGreaterThan(57 * MINUTE_MS);
      await passTime(server, wait);
      await request(LOGIN);
    }
  });
});

test("of 40 requests at once over two replicas for one destination and purpose one is answered", async () => {
  const first = await startForCodes("grpc");
  const second = (await launchForCodes("grpc", {}, first.databaseUrl)).as(first.rootToken);
  for (const destination of [(await addUser(first)).email!, uniqueEmail()]) {
    const tenantId = await first.addTenant();
    const request = { tenantId, channel: EMAIL, destination, purpose: LOGIN };
    const settled = await Promise.allSettled(
      Array.from({ length: 40 }, (_, n) => (n % 2 === 0 ? first : second).auth.requestOtp(request)),
    );
    expect(settled.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  }
});

test("of 60 requests at once over two replicas from one address exactly as many are answered as are taken", async () => {
  const env = { THROTTLE_ADDRESS: "7" };
  const first = await launchForCodes("grpc", env);
  const second = (await launchForCodes("grpc", env, first.databaseUrl)).as(first.rootToken);
  const tenantId = await first.addTenant();
  const settled = await Promise.allSettled(
    Array.from({ length: 60 }, (_, n) =>
      (n % 2 === 0 ? first : second).auth.requestOtp({
        tenantId,
        channel: EMAIL,
        destination: `user${n}@example.com`,
        purpose: LOGIN,
        client: { ip: `2001:db8::${n}` },
      }),
    ),
  );
  expect(settled.filter(({ status }) => status === "fulfilled")).toHaveLength(7);
});

test.each([
  ["its user", (userId: string) => sql.unsafe`SELECT FROM users WHERE user_id = ${userId} FOR UPDATE`],
  ["its place in the queue", () => sql.unsafe`LOCK TABLE graphile_worker._private_tasks IN SHARE MODE`],
])("a request that fails before there is a code, waiting for %s, may be repeated at once", async (_, lock) => {
  const server = await startForCodes("grpc");
  const tenantId = await server.addTenant();
  const { userId, email } = await addUser(server, { tenantId });
  const request = { tenantId, channel: EMAIL, destination: email!, purpose: LOGIN };
  await server.pool.transaction(async (tx) => {
    await tx.query(lock(userId));
    const late = server.auth.requestOtp(request, { timeoutMs: 1_000 });
    await expect(late).rejects.toMatchObject({ code: Code.DeadlineExceeded });
    // The caller's clock may be ahead: let go of before the server has given up, the lock would let it make a code.
    await expect.poll(() => lockWaiters(tx)).toBe(0);
  });
  await vi.waitFor(() => server.auth.requestOtp(request), { timeout: 5_000, interval: 200 });
  await expectRefusal(server.auth.requestOtp(request), "RATE_LIMITED");
});
