import { availableParallelism } from "node:os";
import { type DescMessage, type MessageInitShape, create, toBinary } from "@bufbuild/protobuf";
import { hash } from "@node-rs/argon2";
import {
  GetUserRequestSchema,
  LoginWithPasswordRequestSchema,
  VerifyAccessTokenRequestSchema,
} from "../../src/gen/auth/v1/auth_pb.ts";
import { type BenchService, measure, median } from "./service.ts";
import {
  type AuthClient,
  type BenchUser,
  PASSWORD,
  addBenchTenant,
  addBenchUser,
  authClient,
  keepCalling,
  logIn,
} from "./users.ts";

const USERS = 60;
const ROUNDS = 5;
const SECONDS = 3;
const CORES = availableParallelism();
// More than there are threads, so that none waits for a call.
const LOGINS_AT_ONCE = CORES * 4;
const REFRESHES_AT_ONCE = 32;
const FLOOD = 100;
const OURS = { memoryCost: 19_456, timeCost: 2, parallelism: 1 };

const order = <T extends DescMessage>(method: string, schema: T, ...messages: readonly MessageInitShape<T>[]) => ({
  path: `/auth.v1.AuthService/${method}`,
  messages: messages.map((message) => Buffer.from(toBinary(schema, create(schema, message))).toString("base64")),
});

/** Logins against the bare hash of the same parameters, on the same cores, in turn. Target: 0.95 of its rate. */
const benchRate = async (service: BenchService, users: readonly BenchUser[]) => {
  const rounds = [];
  // One after the other: the same one at once would be logins that wait for each other, and end each other's sessions.
  const login = order(
    "LoginWithPassword",
    LoginWithPasswordRequestSchema,
    ...users.map(({ tenantId, email }) => ({
      tenantId,
      identifier: { case: "email" as const, value: email },
      password: PASSWORD,
    })),
  );
  const flood = () => measure(service, { ...login, concurrency: LOGINS_AT_ONCE, seconds: SECONDS });
  // Until what a login runs is compiled.
  await flood();
  for (let round = 0; round < ROUNDS; round++) {
    const cpuBefore = process.cpuUsage();
    const bare = await keepCalling(CORES, SECONDS, () => hash(PASSWORD, OURS));
    const { user, system } = process.cpuUsage(cpuBefore);
    const logins = await flood();
    if (logins.failures > 0) throw new Error(`${logins.failures} logins failed`);
    rounds.push({ bare, logins, bareMicroseconds: (user + system) / (bare * SECONDS) });
  }
  console.table(
    rounds.map(({ bare, logins, bareMicroseconds }) => ({
      "bare argon2/s": bare.toFixed(1),
      "logins/s": logins.perSecond.toFixed(1),
      ratio: (logins.perSecond / bare).toFixed(3),
      "bare ms CPU": (bareMicroseconds / 1_000).toFixed(2),
      "login ms CPU": (logins.cpuMicroseconds / 1_000).toFixed(2),
      "CPU ratio": (bareMicroseconds / logins.cpuMicroseconds).toFixed(3),
    })),
  );
  const ratio = median(rounds.map(({ bare, logins }) => logins.perSecond / bare));
  console.log(`logins: ${ratio.toFixed(3)} of the bare hash's rate (median of ${ROUNDS} rounds; target: 0.95)`);
};

/** What other calls wait while passwords are hashed. Target: p99 twice the quiet one's at most. */
const benchNeighbours = async (service: BenchService, auth: AuthClient, users: readonly BenchUser[]) => {
  const user = users[0] as BenchUser;
  const { tokens } = await logIn(auth, user);
  const methods = {
    GetUser: order("GetUser", GetUserRequestSchema, {
      tenantId: user.tenantId,
      key: { case: "userId", value: user.userId },
    }),
    VerifyAccessToken: order("VerifyAccessToken", VerifyAccessTokenRequestSchema, {
      accessToken: tokens?.accessToken ?? "",
    }),
  };
  const light = { connections: 2, concurrency: 2, seconds: SECONDS };
  const rows: Record<string, Record<string, string>> = {};
  for (const [name, method] of Object.entries(methods)) {
    const quiet = await measure(service, { ...method, ...light });
    const flood = keepCalling(FLOOD, SECONDS + 1, (worker) => logIn(auth, users[worker % users.length] as BenchUser));
    const flooded = await measure(service, { ...method, ...light });
    await flood;
    rows[name] = {
      "quiet p50 ms": quiet.p50Ms.toFixed(2),
      "flooded p50 ms": flooded.p50Ms.toFixed(2),
      "quiet p99 ms": quiet.p99Ms.toFixed(2),
      "flooded p99 ms": flooded.p99Ms.toFixed(2),
      "p99 ratio": (flooded.p99Ms / quiet.p99Ms).toFixed(2),
    };
  }
  console.table(rows);
  const { perSecond, cpuMicroseconds } = await measure(service, methods.VerifyAccessToken);
  const perCore = 1_000_000 / cpuMicroseconds;
  console.log(`VerifyAccessToken: ${Math.round(perSecond)}/s, ${Math.round(perCore)}/s for each core of the service`);
};

const benchRefreshes = async (service: BenchService, auth: AuthClient, users: readonly BenchUser[]) => {
  const refreshTokens = await Promise.all(
    Array.from({ length: REFRESHES_AT_ONCE }, async (_, worker) => {
      const { tokens } = await logIn(auth, users[worker % users.length] as BenchUser);
      return tokens?.refreshToken ?? "";
    }),
  );
  const cpuBefore = await service.cpuSeconds();
  const perSecond = await keepCalling(REFRESHES_AT_ONCE, SECONDS, async (worker) => {
    const { tokens } = await auth.refreshSession({ refreshToken: refreshTokens[worker] as string });
    refreshTokens[worker] = tokens?.refreshToken ?? "";
  });
  const perCore = (perSecond * SECONDS) / ((await service.cpuSeconds()) - cpuBefore);
  console.log(`refreshes: ${Math.round(perSecond)}/s, ${Math.round(perCore)}/s for each core of the service`);
};

/** Sign-ins, and what they do to everything else. The service's throttles are off. */
export const benchLogins = async (service: BenchService): Promise<void> => {
  const auth = authClient(service);
  const tenantId = await addBenchTenant(service);
  const users = await Promise.all(Array.from({ length: USERS }, () => addBenchUser(auth, tenantId, PASSWORD)));
  await benchRate(service, users);
  await benchNeighbours(service, auth, users);
  await benchRefreshes(service, auth, users);
};
