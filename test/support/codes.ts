import { randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Interceptor, sql } from "slonik";
import { onTestFinished } from "vitest";
import { z } from "zod";
import { type Channel, deriveCode } from "../../src/auth/otp-codes.ts";
import type { AuthParts } from "../../src/auth/parts.ts";
import { createThrottles } from "../../src/auth/throttles.ts";
import { openDatabase } from "../../src/db/pool.ts";
import { OtpChannel, OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import { createLog } from "../../src/log.ts";
import { createMacs } from "../../src/macs.ts";
import { Call } from "../../src/rpc/call.ts";
import { CHEAP_HASHES, PASSWORD } from "./passwords.ts";
import { oncePerFile, onFileFinished } from "./per-file.ts";
import { type TestService, type TransportName, launchForFile } from "./service.ts";
import { PEPPERS } from "./root.ts";
import { addUser, uniqueEmail } from "./users.ts";

const macs = createMacs(PEPPERS);

/** What Auth's code handlers are made of, on a connection of the test's own, and the statements that ran on it. */
export const watchStatements = ({ databaseUrl, config }: TestService) => {
  const statements: string[] = [];
  const watch: Interceptor = {
    name: "statements",
    beforeQueryExecution(_context, query) {
      statements.push(query.sql);
      return null;
    },
  };
  const settings = config.database;
  const db = openDatabase({ url: databaseUrl, settings, log: createLog("silent"), interceptors: [watch] });
  onTestFinished(() => db.end());
  const throttles = createThrottles({ db, macs, config: config.throttles, log: createLog("silent") });
  const channels = new Set<Channel>(["email"]);
  return { statements, parts: { db, macs, throttles, config, channels } as unknown as AuthParts };
};

/** A call that nobody bounds. */
export const newCall = (): Call => {
  const call = new Call(randomUUID(), 60_000);
  onTestFinished(() => call.close());
  return call;
};

export interface SentCode {
  readonly tenantId: string;
  readonly otpId: string;
  /** What a message would have held. */
  readonly code: string;
}

export interface CodeRequest {
  readonly tenantId: string;
  readonly destination: string;
  readonly channel?: OtpChannel;
  readonly purpose?: OtpPurpose;
  readonly client?: { readonly ip: string };
}

/** A server of the file's own; it ends with the file. */
export const launchForCodes = async (
  transport: TransportName,
  env: Readonly<Record<string, string>> = {},
  databaseUrl?: string,
): Promise<TestService> => {
  const dataDir = await mkdtemp(join(tmpdir(), "auth-service-codes-"));
  onFileFinished(() => rm(dataDir, { recursive: true, force: true }));
  return launchForFile(transport, {
    env: { ...CHEAP_HASHES, DATA_DIR: dataDir, ...env },
    ...(databaseUrl !== undefined && { databaseUrl }),
  });
};

/** As `startService`; hashing is cheap. */
export const startForCodes = oncePerFile((transport: TransportName) => launchForCodes(transport));

/** The code that belongs to an id: nobody's too. */
export const codeOf = async ({ pool }: TestService, otpId: string): Promise<string> => {
  const hash = await pool.oneFirst(sql.type(z.object({ code_hash_text: z.string() }))`
    SELECT code_hash_text FROM otp_codes WHERE otp_id = ${otpId}::uuid`);
  return deriveCode(macs, otpId, hash) ?? "";
};

/** Requests a code to sign in by e-mail, unless told otherwise. */
export const requestCode = async (server: TestService, request: CodeRequest): Promise<SentCode> => {
  const { otpId } = await server.auth.requestOtp({
    channel: OtpChannel.EMAIL,
    purpose: OtpPurpose.LOGIN,
    ...request,
  });
  return { tenantId: request.tenantId, otpId, code: await codeOf(server, otpId) };
};

/** A user with an e-mail, and a code for it. */
export const someone = async (server: TestService, purpose: OtpPurpose = OtpPurpose.LOGIN) => {
  const user = await addUser(server, { password: PASSWORD });
  const { tenantId, userId, email = "" } = user;
  return { user, tenantId, userId, email, sent: await requestCode(server, { tenantId, destination: email, purpose }) };
};

/** A tenant's destinations that no code is sent to, and one that has a user. */
export const destinationsOf = async (server: TestService, tenantId: string) => {
  const add = async () => addUser(server, { tenantId });
  const [user, inactive, erased] = [await add(), await add(), await add()];
  await server.auth.deactivateUser({ tenantId, userId: inactive.userId });
  await server.auth.eraseUser({ tenantId, userId: erased.userId });
  return {
    user: user.email!,
    inactive: inactive.email!,
    erased: erased.email!,
    nobody: uniqueEmail(),
    "of another tenant": (await addUser(server)).email!,
  };
};

/** The n-th of the codes that are not this one. */
export const otherCode = (code: string, n = 1): string => String((Number(code) + n) % 1_000_000).padStart(6, "0");

const attemptsRow = z.object({ attempt_count: z.number(), consumed: z.boolean() });

export const attemptsOf = ({ pool }: TestService, { otpId }: Pick<SentCode, "otpId">) =>
  pool.one(sql.type(attemptsRow)`
    SELECT attempt_count, consumed_utc IS NOT NULL AS consumed FROM otp_codes WHERE otp_id = ${otpId}::uuid`);

/** Lets time pass for what is counted. */
export const passTime = ({ pool }: TestService, ms: number) =>
  pool.query(sql.unsafe`
    UPDATE throttles SET window_end_utc = window_end_utc - ${ms}::float8 * interval '1 millisecond'`);
