import { readClient } from "../../src/auth/clients.ts";
import { type Throttles, type Try, createThrottles } from "../../src/auth/throttles.ts";
import { type Config, parseConfig } from "../../src/config.ts";
import { type Database, openDatabase } from "../../src/db/pool.ts";
import { createLog } from "../../src/log.ts";
import { createMacs } from "../../src/macs.ts";
import { detached } from "../../src/rpc/call.ts";
import { Refusal } from "../../src/rpc/refusal.ts";
import { openPool } from "./admin.ts";
import { createDatabase } from "./database.ts";
import { onFileFinished } from "./per-file.ts";
import { PEPPERS } from "./root.ts";

/** Limits that a few tries reach. */
export const LOWERED = {
  THROTTLE_IDENTIFIER_ADDRESS: "3",
  THROTTLE_IDENTIFIER: "5",
  THROTTLE_ADDRESS: "7",
  THROTTLE_TENANT: "9",
};

export const macs = createMacs(PEPPERS);

export const configOf = (env: Readonly<Record<string, string>>): Config["throttles"] =>
  parseConfig({ NODE_ENV: "test", ...env }).throttles;

/** Two replicas on a database of the file's own, each with connections of its own; they end with the file. */
export const openReplicas = async () => {
  const database = await createDatabase();
  const pool = await openPool(database.url, 10);
  const settings = parseConfig({ NODE_ENV: "test" }).database;
  const open = () => openDatabase({ url: database.url, settings, log: createLog("silent") });
  const replicas: readonly Database[] = [open(), open()];
  onFileFinished(async () => {
    await Promise.all(replicas.map((db) => db.end()));
    await pool.end();
    await database.drop();
  });
  const throttlesOf = (env: Readonly<Record<string, string>> = {}, replica = 0): Throttles =>
    createThrottles({ db: replicas[replica]!, macs, config: configOf(env), log: createLog("silent") });
  return { pool, url: database.url, replicas, throttlesOf };
};

export type Replicas = Awaited<ReturnType<typeof openReplicas>>;

let tenants = 0;
/** Each test has a tenant of its own: buckets are of a tenant. */
export const newTenant = () => `0190aaaa-0000-7000-8000-${String(++tenants).padStart(12, "0")}`;

/** A try to log in. */
export const tryOf = (tenantId: string, identifier?: string, ip?: string, known = false): Try => ({
  act: "login",
  tenantId,
  identifier,
  client: readClient(ip === undefined ? undefined : { $typeName: "auth.v1.ClientInfo", ip }),
  networkIsKnown: known,
});

/** Milliseconds until a retry, or undefined where the try was counted. */
export const count = async (throttles: Throttles, attempt: Try): Promise<number | undefined> => {
  try {
    await throttles.count(detached(), attempt);
    return undefined;
  } catch (error) {
    if (error instanceof Refusal && error.reason === "RATE_LIMITED") return error.retryAfterMs;
    throw error;
  }
};

/** A try that was counted and is under way until it is ended by one of these. */
export const begin = async (throttles: Throttles, attempt: Try) => {
  const begun = Promise.withResolvers<undefined>();
  const work = Promise.withResolvers<boolean | undefined>();
  const over = throttles.during(detached(), attempt, () => {
    begun.resolve(undefined);
    return work.promise;
  });
  await Promise.race([begun.promise, over]);
  const endBy = (answer: boolean | undefined) => async () => {
    work.resolve(answer);
    await over;
  };
  return { succeed: endBy(true), fail: endBy(undefined) };
};

/** How many of so many tries, one after the other, are counted. */
export const countedOf = async (throttles: Throttles, tries: number, attempt: (n: number) => Try) => {
  let counted = 0;
  for (let n = 0; n < tries; n++) if ((await count(throttles, attempt(n))) === undefined) counted++;
  return counted;
};
