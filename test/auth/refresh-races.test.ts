import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import fc from "fast-check";
import { sql } from "slonik";
import { expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { refreshHandlers, tokenUse } from "../../src/auth/refresh.ts";
import type { OpenedSession } from "../../src/auth/sessions.ts";
import { parseConfig } from "../../src/config.ts";
import { RefreshSessionRequestSchema } from "../../src/gen/auth/v1/auth_pb.ts";
import { createMacs } from "../../src/macs.ts";
import { Call, detached } from "../../src/rpc/call.ts";
import { heldUp } from "../support/held-up.ts";
import { lockWaiters } from "../support/lock-waiters.ts";
import { openFor } from "../support/open-database.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { PEPPERS } from "../support/root.ts";
import { startProcess } from "../support/server-process.ts";
import { type TestService, clientsOf, launchService, startService } from "../support/service.ts";
import { signInBy } from "../support/sign-in.ts";
import { actionsOf } from "../support/users.ts";

type Auth = TestService["auth"];

const sessionRow = z.object({ generation: z.number(), revoked_utc: z.number().nullable() });

const rowOf = ({ pool }: TestService, sessionId: string) =>
  pool.one(sql.type(sessionRow)`
    SELECT generation, revoked_utc FROM refresh_sessions WHERE session_id = ${sessionId}::uuid`);

const rotatedAgo = ({ pool }: TestService, sessionId: string, seconds: number) =>
  pool.query(sql.unsafe`
    UPDATE refresh_sessions SET refreshed_utc = refreshed_utc - ${seconds}::int * interval '1 second'
    WHERE session_id = ${sessionId}::uuid`);

const tokenOf = async (auth: Auth, refreshToken: string) =>
  (await auth.refreshSession({ refreshToken })).tokens!.refreshToken;

const lockRow = (sessionId: string) =>
  sql.unsafe`SELECT FROM refresh_sessions WHERE session_id = ${sessionId}::uuid FOR UPDATE`;

/** Holds the session's row until every connection of the server waits for it. */
const allAtOnce = async <T>({ pool, config }: TestService, sessionId: string, start: () => Promise<T>): Promise<T> => {
  const { promise } = await pool.transaction(async (tx) => {
    await tx.query(lockRow(sessionId));
    const started = start();
    await expect.poll(() => lockWaiters(tx), { timeout: 20_000 }).toBe(config.database.poolMax);
    return { promise: started };
  });
  return promise;
};

test(
  "1,000 uses of one token at once over two processes leave one lineage and log nobody out",
  { timeout: 120_000 },
  async () => {
    const service = await startService("grpc");
    const processes = await Promise.all([1, 2].map(() => startProcess(service.databaseUrl, {})));
    const auths = processes.map((process) => {
      const { auth } = clientsOf("grpc", process)({ authorization: `Bearer ${service.rootToken}` });
      return auth;
    });
    const { refreshToken, sessionId } = await (await signInBy(service))();
    const uses = Array.from({ length: 1_000 }, (_, index) => tokenOf(auths[index % 2]!, refreshToken));
    const successors = new Set(await Promise.all(uses));
    expect(successors.size).toBe(1);
    expect(await rowOf(service, sessionId)).toEqual({ generation: 1, revoked_utc: null });
    expect(await tokenOf(auths[1]!, [...successors][0]!)).toContain(`rt_${sessionId}_2_`);
  },
);

test("through 20 rotations, each asked for 20 times at once over two servers, a session has one lineage", async () => {
  const one = await startService("grpc");
  const two = await launchService("grpc", { databaseUrl: one.databaseUrl });
  const auths = [one.auth, two.as(one.rootToken).auth];
  const { refreshToken, sessionId } = await (await signInBy(one))();
  let token = refreshToken;
  for (let generation = 1; generation <= 20; generation++) {
    const shown = token;
    const uses = Array.from({ length: 20 }, (_, index) => tokenOf(auths[index % 2]!, shown));
    const [successor, ...others] = new Set(await Promise.all(uses));
    expect(others).toEqual([]);
    expect(successor).toContain(`rt_${sessionId}_${generation}_`);
    token = successor!;
  }
  expect(await rowOf(one, sessionId)).toEqual({ generation: 20, revoked_utc: null });
  await two.stop();
});

test("a caller who goes away takes nobody else's refresh with him", async () => {
  const service = await startService("grpc");
  const { auth } = service;
  const { refreshToken } = await (await signInBy(service))();
  const leaving = new AbortController();
  const first = auth.refreshSession({ refreshToken }, { signal: leaving.signal }).catch(() => undefined);
  const others = Array.from({ length: 20 }, () => tokenOf(auth, refreshToken));
  leaving.abort();
  await first;
  expect(new Set(await Promise.all(others)).size).toBe(1);
});

test("of 20 who show stolen tokens at once, one ends the session and the others find it ended", async () => {
  const service = await startService("grpc");
  const { refreshToken, sessionId } = await (await signInBy(service))();
  const lineage = [refreshToken];
  // Each of another generation: uses of one and the same token would be one.
  while (lineage.length < 22) lineage.push(await tokenOf(service.auth, lineage.at(-1)!));
  const stolen = lineage.slice(0, 20);
  const answers = await allAtOnce(service, sessionId, () =>
    Promise.all(stolen.map((token) => refused(service.auth.refreshSession({ refreshToken: token })))),
  );
  const reasons = answers.map(({ reason }) => reason).sort();
  expect(reasons).toEqual([...Array<string>(19).fill("SESSION_INVALID"), "SESSION_REUSED"]);
  expect(await actionsOf(service, sessionId)).toEqual(["auth.session.reuse", "auth.session.create"]);
});

test("refreshes that race the end of all sessions leave none alive", async () => {
  const service = await startService("grpc");
  const signIn = await signInBy(service);
  const { tenantId, userId } = await signIn();
  const tokens = await Promise.all(
    Array.from({ length: 20 }, async () => (await signIn({ tenantId, userId })).refreshToken),
  );
  const racing = tokens.map((token) => tokenOf(service.auth, token).catch(() => undefined));
  const { revokedCount } = await service.auth.revokeAllSessions({ tenantId, userId });
  const successors = await Promise.all(racing);
  expect(revokedCount).toBe(21);
  for (const [index, successor] of successors.entries()) {
    const call = service.auth.refreshSession({ refreshToken: successor ?? tokens[index]! });
    await expectRefusal(call, "SESSION_INVALID");
  }
});

test("a refresh in a session's last moment carries it no further than the end of all sessions", async () => {
  // Its statement is held for longer than the usual one may take.
  const service = await launchService("grpc", { env: { DATABASE_STATEMENT_TIMEOUT: "30s" } });
  onTestFinished(() => service.stop());
  const { tenantId, userId, sessionId, refreshToken } = await (await signInBy(service))();
  await service.pool.query(sql.unsafe`
    UPDATE refresh_sessions SET expiry_utc = clock_timestamp() + interval '5 seconds'
    WHERE session_id = ${sessionId}::uuid`);
  const isOver = sql.type(z.object({ is_over: z.boolean() }))`
    SELECT expiry_utc < clock_timestamp() AS is_over FROM refresh_sessions WHERE session_id = ${sessionId}::uuid`;
  const { refreshing, ending } = await service.pool.transaction(async (tx) => {
    await tx.query(lockRow(sessionId));
    const refreshed = tokenOf(service.auth, refreshToken);
    await expect.poll(() => lockWaiters(tx), { timeout: 4_500 }).toBe(1);
    await expect.poll(() => tx.oneFirst(isOver), { timeout: 10_000 }).toBe(true);
    let isEnded = false;
    const ended = service.auth.revokeAllSessions({ tenantId, userId }).finally(() => (isEnded = true));
    await expect.poll(async () => isEnded || (await lockWaiters(tx)) === 2, { timeout: 10_000 }).toBe(true);
    return { refreshing: refreshed, ending: ended };
  });
  const successor = await refreshing;
  expect((await ending).revokedCount).toBe(1);
  await expectRefusal(service.auth.refreshSession({ refreshToken: successor }), "SESSION_INVALID");
});

test("a service of another tenant does not share the answer of a refresh under way", async () => {
  const service = await startService("grpc");
  const { refreshToken, sessionId } = await (await signInBy(service))();
  const stranger = await service.addService(["auth.login"], await service.addTenant());
  const { refreshing } = await service.pool.transaction(async (tx) => {
    await tx.query(lockRow(sessionId));
    const refreshed = tokenOf(service.auth, refreshToken);
    await expect.poll(() => lockWaiters(tx)).toBe(1);
    await expectRefusal(stranger.auth.refreshSession({ refreshToken }), "SESSION_INVALID");
    return { refreshing: refreshed };
  });
  expect(await refreshing).toContain(sessionId);
});

test("a rotation that waited for its session is answered again for as long as one that did not", async () => {
  const service = await launchService("grpc", { env: { REFRESH_GRACE: "2s" } });
  onTestFinished(() => service.stop());
  const { sessionId, refreshToken } = await (await signInBy(service))();
  const successor = await heldUp(
    service,
    lockRow(sessionId),
    () => tokenOf(service.auth, refreshToken),
    () => sleep(2_100),
  );
  expect(await tokenOf(service.auth, refreshToken)).toBe(successor);
});

test("what a call waited for us is not held against its client", () => {
  const row = { generation: 1, refreshed_utc: 1_000 };
  expect(tokenUse(row, 0, 10_999, 10_000)).toBe("repeat");
  expect(tokenUse(row, 0, 11_000, 10_000)).toBe("reuse");
  expect(tokenUse(row, 0, -5_000, 10_000)).toBe("repeat");
});

test("a refresh that waits for a connection until the grace is over is answered as when it came", async () => {
  const service = await startService("grpc");
  const { auth, pool, databaseUrl } = service;
  const { refreshToken, sessionId } = await (await signInBy(service))();
  const successor = await tokenOf(auth, refreshToken);
  const db = openFor(databaseUrl, { DATABASE_POOL_MAX: "1" });
  const release = Promise.withResolvers<undefined>();
  const holding = db.use(detached(), () => release.promise);

  const config = parseConfig({ REFRESH_GRACE: "100ms" });
  const tokens = ({ refreshToken: token }: OpenedSession) => Promise.resolve({ refreshToken: token });
  const parts = { db, config, macs: createMacs(PEPPERS), sessions: { tokens } };
  const call = new Call(randomUUID(), 30_000);
  onTestFinished(() => call.close());
  call.identify({ permissions: [] } as never, undefined);
  const request = create(RefreshSessionRequestSchema, { refreshToken });
  const refreshing = refreshHandlers(parts as never).refreshSession(request, call);
  expect(db.load()).toEqual({ inside: 1, waiting: 1 });

  await pool.query(sql.unsafe`
    UPDATE refresh_sessions SET refreshed_utc = clock_timestamp() WHERE session_id = ${sessionId}::uuid`);
  const isLate = sql.type(z.object({ is_late: z.boolean() }))`
    SELECT refreshed_utc + interval '100 ms' < clock_timestamp() AS is_late FROM refresh_sessions
    WHERE session_id = ${sessionId}::uuid`;
  await expect.poll(() => pool.oneFirst(isLate)).toBe(true);
  release.resolve(undefined);
  await holding;
  expect((await refreshing).tokens).toEqual({ refreshToken: successor });
});

/** What a client or a thief may do next; `age` names a token by how many rotations ago it was current. */
const step = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant("use" as const), age: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("wait" as const), age: fc.constant(0) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("logout" as const), age: fc.nat(3) }) },
);

/** The rule in its shortest words: what a use of the token of this age must answer. */
const expected = (state: { readonly ended: boolean; readonly fresh: boolean }, age: number) => {
  if (state.ended) return "SESSION_INVALID";
  if (age === 0) return "next";
  return age === 1 && state.fresh ? "same" : "SESSION_REUSED";
};

test("whatever is shown in whatever order, a session goes as its rule says", async () => {
  const service = await startService("grpc");
  const signIn = await signInBy(service);
  const tenantId = await service.addTenant();
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), async (steps) => {
      const { refreshToken, sessionId } = await signIn({ tenantId });
      const lineage = [refreshToken];
      const state = { ended: false, fresh: false };
      for (const { kind, age } of steps) {
        const shown = lineage.at(-1 - age);
        if (kind === "wait") {
          await rotatedAgo(service, sessionId, 10);
          state.fresh = false;
        } else if (shown === undefined) {
          continue;
        } else if (kind === "logout") {
          await service.auth.logout({ refreshToken: shown });
          state.ended = true;
        } else {
          const answer = expected(state, age);
          if (answer === "next") {
            lineage.push(await tokenOf(service.auth, shown));
            state.fresh = true;
          } else if (answer === "same") {
            expect(await tokenOf(service.auth, shown)).toBe(lineage.at(-1));
          } else {
            await expectRefusal(service.auth.refreshSession({ refreshToken: shown }), answer);
            state.ended = true;
          }
        }
        const row = await rowOf(service, sessionId);
        expect(row).toMatchObject({ generation: lineage.length - 1 });
        expect(row.revoked_utc !== null).toBe(state.ended);
      }
      expect(new Set(lineage).size).toBe(lineage.length);
    }),
    { numRuns: 40 },
  );
});
