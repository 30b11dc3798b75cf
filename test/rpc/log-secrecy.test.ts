import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import type { Readable } from "node:stream";
import { type Message, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import fc from "fast-check";
import { sql } from "slonik";
import { afterAll, beforeAll, expect, inject, test, vi } from "vitest";
import { z } from "zod";
import { createLog } from "../../src/log.ts";
import { makeCredential } from "../../src/service-identity/credentials.ts";
import { CHILD_ENV } from "../support/child-env.ts";
import { type TestDatabase, createDatabase } from "../support/database.ts";
import { startGoogleIssuer } from "../support/google-issuer.ts";
import { type Known, sampleMessages, wildMessage } from "../support/messages.ts";
import { CHEAP_HASHES } from "../support/passwords.ts";
import { type Ground, patience, plantFor } from "../support/planted.ts";
import { type RawCaller, rawConnect, rawGrpc } from "../support/raw-calls.ts";
import { type Rpc, bearer, guarded, rpcs } from "../support/rpcs.ts";
import { gatherSecrets, secretsAmong } from "../support/secrets.ts";
import { launchService } from "../support/service.ts";
import { PEPPERS, SECRET_PEPPERS } from "../support/root.ts";

// The pepper of every test server.
const [PEPPER] = PEPPERS;

const RUNS = 2;

type Child = ChildProcessByStdio<null, Readable, Readable>;

/** Everything that anybody but the caller who may know could read. */
const written: string[] = [];
const told: string[] = [];
/** What must stand in none of it. */
const secrets = gatherSecrets();
/** Which codes each RPC was answered with. */
const codes = new Map<string, Set<number>>();

let database: TestDatabase;
let ground: Omit<Ground, "tenantId">;
let child: Child;
let callers: readonly RawCaller[];

const send = async (caller: RawCaller, rpc: Rpc, message: Message, headers: Readonly<Record<string, string>>) => {
  const answer = await caller.call(rpc.method, toBinary(rpc.method.input, message), headers);
  codes.set(rpc.name, (codes.get(rpc.name) ?? new Set()).add(answer.code));
  told.push(answer.text, ...answer.details.map(({ value }) => Buffer.from(value).toString("latin1")));
  if (answer.code === 0 && rpc.method.methodKind === "unary") secrets.keepAnswer(rpc, answer.body);
};

const plant = async (rpc: Rpc): Promise<Known> => {
  const tenantId = await ground.server.addTenant();
  const known = await plantFor({ ...ground, tenantId }, rpc);
  secrets.keepKnown(known);
  return known;
};

/** What is nearly right, or a secret in the wrong place: as secret as what is right. */
const spoil = (known: Known, wrong: readonly string[]): Known => {
  const spoilt = {
    ...Object.fromEntries(secretsAmong(known).map(([name, values]) => [name, values.map((value) => `${value}x`)])),
    ...{ secret: wrong, service_token: wrong, label: wrong },
  };
  secrets.keepKnown(spoilt);
  return { ...known, ...spoilt };
};

/** Every RPC by every caller that could be right or wrong, with what works, what is refused and what is nonsense. */
const drive = async (rpc: Rpc) => {
  const { server } = ground;
  const known = await plant(rpc);
  const service = await server.addService(["a.read"], known["tenant_id"]?.[0]);
  const wrong = [
    makeCredential("sks", service.secretId),
    makeCredential("skt", service.token.split("_")[1] ?? ""),
    `${makeCredential("sks", service.secretId)}x`,
    "hunter2-is-no-credential",
  ];
  secrets.keep(service.secret, service.token, ...wrong);
  const spoilt = spoil(known, wrong);
  const { input } = rpc.method;
  const root = bearer(server.rootToken);
  const [right, ...others] = [known, {}, spoilt].flatMap((values) => sampleMessages(input, values));
  for (const caller of callers) await send(caller, rpc, right!, root);
  const actors = [...(known["access_token"] ?? []), ...wrong];
  const calls = [
    ...[...others, ...fc.sample(wildMessage(input, spoilt), RUNS)].map((request) => [request, root] as const),
    ...[{}, ...[service.token, service.secret, ...wrong].map(bearer)].map((headers) => [right!, headers] as const),
    ...actors.map((token) => [right!, { ...root, "x-actor-token": token }] as const),
  ];
  // By turns, since the callers differ in little: each sees each kind of call many times.
  for (const [index, [request, headers]] of calls.entries()) {
    await send(callers[(index + rpcs.indexOf(rpc)) % callers.length]!, rpc, request, headers);
  }
};

/** The server as people run it, whose every line is read; slonik's own logger is asked to speak. */
const startProcess = async (databaseUrl: string, more: Record<string, string>): Promise<[Child, number]> => {
  const env = {
    ...CHILD_ENV,
    NODE_ENV: "production",
    JWT_KEYS_FILE: inject("jwtKeysFile"),
    DATABASE_URL: databaseUrl,
    SECRET_PEPPERS,
    LOG_LEVEL: "trace",
    GRPC_HOST: "127.0.0.1",
    GRPC_PORT: "0",
    HTTP_PORT: "0",
    SHUTDOWN_DELAY: "0s",
    ROARR_LOG: "true",
    ...more,
  };
  const started = spawn(process.execPath, ["src/main.ts"], { env, stdio: ["ignore", "pipe", "pipe"] });
  started.stderr.on("data", (chunk: Buffer) => written.push(chunk.toString()));
  const grpcPort = await new Promise<number>((resolve, reject) => {
    started.once("exit", () => reject(new Error(written.join(""))));
    started.stdout.on("data", (chunk: Buffer) => {
      written.push(chunk.toString());
      const port = /"grpc":"127\.0\.0\.1:(\d+)"/.exec(written.join(""))?.[1];
      if (port) resolve(Number(port));
    });
  });
  return [started, grpcPort];
};

beforeAll(async () => {
  database = await createDatabase();
  const issuer = await startGoogleIssuer();
  const env = { ...issuer.env, ...CHEAP_HASHES, ...patience };
  const log = createLog("trace", { write: (line) => void written.push(line) });
  // The folder that messages would be written into cannot be made: each is tried, and its failure logged.
  const inProcess = { env: { ...env, DATA_DIR: "/dev/null" }, log, databaseUrl: database.url };
  const server = await launchService("grpc", inProcess);
  ground = { server, issuer };
  const [started, grpcPort] = await startProcess(database.url, env);
  child = started;
  callers = [rawGrpc(server), rawConnect(server), rawGrpc({ ...server, grpcPort })];
  const { keys } = JSON.parse(await readFile(inject("jwtKeysFile"), "utf8")) as { keys: { d: string }[] };
  secrets.keep(server.rootSecret, server.rootToken, new URL(database.url).password, ...keys.map(({ d }) => d));
  for (const encoding of ["base64", "base64url", "hex"] as const) secrets.keep(PEPPER!.key.toString(encoding));
});

afterAll(async () => {
  for (const caller of callers) caller.close();
  child.kill("SIGTERM");
  if (child.exitCode === null) await once(child, "exit");
  await ground.server.stop();
  await ground.issuer.close();
});

const textRow = z.object({ text: z.string() });

/** What stands in the database in place of the credentials. */
const keepHashes = async () => {
  const hashes = await ground.server.pool.anyFirst(sql.type(textRow)`
    SELECT secret_hash_text AS text FROM service_secrets
    UNION ALL SELECT token_hash_text FROM service_sessions
    UNION ALL SELECT refresh_token_hash_text FROM refresh_sessions
    UNION ALL SELECT code_hash_text FROM otp_codes
    UNION ALL SELECT invite_token_hash_text FROM invitations
    UNION ALL SELECT password_hash_text FROM user_identities WHERE password_hash_text IS NOT NULL`);
  secrets.keep(...hashes.map((hash) => hash.replace(/^\d+:/, "")));
};

/** What auditors and operators read: the events' payloads, the jobs and their errors. */
const keepRecords = async () => {
  const jobs = sql.type(textRow)`
    SELECT j.payload::text || j.last_error AS text FROM graphile_worker._private_jobs j WHERE j.last_error IS NOT NULL`;
  const failed = await vi.waitUntil(async () => {
    const rows = await ground.server.pool.anyFirst(jobs);
    return rows.length > 0 && rows;
  });
  const payloads = await ground.server.pool.anyFirst(sql.type(textRow)`
    SELECT a.payload_json::text AS text FROM audit_events a`);
  expect(payloads.length).toBeGreaterThan(300);
  told.push(...failed, ...payloads);
};

/** The RPCs that were answered with each of these codes. */
const answeredWith = (...wanted: readonly number[]) =>
  rpcs.map(({ name }) => name).filter((name) => wanted.every((code) => codes.get(name)?.has(code)));

const sendAll = async (requests: readonly (readonly [Rpc, Message])[]) => {
  for (const [rpc, request] of requests)
    for (const caller of callers) await send(caller, rpc, request, bearer(ground.server.rootToken));
};

const firstOf = (rpc: Rpc, known: Known) => [rpc, sampleMessages(rpc.method.input, known)[0]!] as const;

// Each with a table that it writes a secret or a contact into.
const BROKEN: Readonly<Record<string, string>> = {
  CreateUser: "users",
  SetPassword: "user_identities",
  LoginWithPassword: "refresh_sessions",
  RequestOtp: "otp_codes",
  CreateInvitation: "invitations",
  CreateServiceSecret: "service_secrets",
  AuthenticateService: "service_sessions",
};

/** Rows that PostgreSQL refuses, quoting them; then a table that is not there; then no database. */
const breakAll = async () => {
  const { pool } = ground.server;
  const breaking = rpcs.filter(({ name }) => BROKEN[name]);
  const requests = await Promise.all(breaking.map(async (rpc) => firstOf(rpc, await plant(rpc))));
  for (const table of Object.values(BROKEN)) {
    await pool.query(sql.unsafe`ALTER TABLE ${sql.identifier([table])} ADD CONSTRAINT broken CHECK (false) NOT VALID`);
  }
  await sendAll(requests);
  expect(answeredWith(Code.Internal)).toEqual(breaking.map(({ name }) => name));

  const all = rpcs.map((rpc) => firstOf(rpc, {}));
  await pool.query(sql.unsafe`ALTER TABLE service_permissions RENAME TO service_permissions_away`);
  await sendAll(all);
  expect(answeredWith(Code.Internal).length).toBeGreaterThan(rpcs.length / 2);

  await database.drop();
  await sendAll(all);
  expect(answeredWith(Code.Unavailable).length).toBeGreaterThan(rpcs.length / 2);
};

test("every RPC succeeds, is refused, and breaks, while the log and all answers are kept", async () => {
  for (const rpc of rpcs) await drive(rpc);
  expect(answeredWith(0)).toEqual(rpcs.map(({ name }) => name));
  const proven = guarded.map(({ name }) => name);
  expect(answeredWith(Code.Unauthenticated)).toEqual(expect.arrayContaining(proven));
  await keepRecords();
  await keepHashes();
  await breakAll();
}, 120_000);

test.each([
  ["the log", written],
  ["what callers and auditors are told", told],
])("%s has none of the secrets, tokens, hashes, peppers, passwords, codes and contacts", (_, lines) => {
  const all = lines.join("\n");
  expect(all.length).toBeGreaterThan(100_000);
  expect(secrets.size()).toBeGreaterThan(2_000);
  expect(secrets.foundIn(all)).toEqual([]);
  // Also those that no caller was ever given: what has a credential's form or a stored hash's.
  const forms = /(?:sk[st]|inv|rt)_[0-9a-f-]{36}_\w{43}|\b\d+:[\w-]{43}\b|\beyJ[\w-]+\.eyJ|\$argon2/g;
  expect(all.match(forms) ?? []).toEqual([]);
});

test("the log is lines of ours alone: slonik's own logger stays silent, even where the environment turns it on", () => {
  const lines = written
    .join("\n")
    .split("\n")
    .filter((line) => line.trim() !== "");
  const foreign = lines.filter((line) => !/^\{"level":"(trace|debug|info|warn|error|fatal)","time":/.test(line));
  expect(foreign.slice(0, 3)).toEqual([]);
  expect(lines.some((line) => line.includes('"rpc":"'))).toBe(true);
});
