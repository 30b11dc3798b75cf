import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import type { Readable } from "node:stream";
import { type Message, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import fc from "fast-check";
import { sql } from "slonik";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { createLog } from "../../src/log.ts";
import { makeCredential } from "../../src/service-identity/credentials.ts";
import { type TestDatabase, createDatabase } from "../support/database.ts";
import { type Known, sampleMessages, wildMessage } from "../support/messages.ts";
import { type RawCaller, rawConnect, rawGrpc } from "../support/raw-calls.ts";
import { type Rpc, bearer, rpcs } from "../support/rpcs.ts";
import { type TestService, launchService, uniqueKey } from "../support/service.ts";

// The pepper of every test server.
const PEPPER = Buffer.alloc(32, 7);

type Child = ChildProcessByStdio<null, Readable, Readable>;

/** Everything that anybody but the caller who may know could read. */
const written: string[] = [];
const told: string[] = [];
/** What must stand in none of it. */
const secrets = new Set<string>();
/** Which codes each RPC was answered with. */
const codes = new Map<string, Set<number>>();

let database: TestDatabase;
let server: TestService;
let child: Child;
let callers: readonly RawCaller[];

/** The whole credential, and its random part alone. */
const keepSecret = (...credentials: readonly string[]) => {
  for (const credential of credentials) {
    secrets.add(credential);
    const random = credential.split("_")[2];
    if (random) secrets.add(random);
  }
};

const keepNewSecrets = ({ method }: Rpc, body: Uint8Array) => {
  const answer = fromBinary(method.output, body) as Message & { secret?: string; serviceToken?: string };
  keepSecret(...[answer.secret, answer.serviceToken].filter((one) => one !== undefined && one !== "").map(String));
};

const send = async (caller: RawCaller, rpc: Rpc, message: Message, headers: Readonly<Record<string, string>>) => {
  const answer = await caller.call(rpc.method, toBinary(rpc.method.input, message), headers);
  codes.set(rpc.name, (codes.get(rpc.name) ?? new Set()).add(answer.code));
  told.push(answer.text, ...answer.details.map(({ value }) => Buffer.from(value).toString("latin1")));
  if (answer.code === 0) keepNewSecrets(rpc, answer.body);
};

const wrongCredentials = ({ secretId, token }: { secretId: string; token: string }) => {
  const wrong = [
    makeCredential("sks", secretId),
    makeCredential("skt", token.split("_")[1] ?? ""),
    `${makeCredential("sks", secretId)}x`,
    "hunter2-is-no-credential",
  ];
  keepSecret(...wrong);
  return wrong;
};

/** Every RPC by every caller that could be right or wrong, with what works, what is refused and what is nonsense. */
const drive = async (rpc: Rpc, runs: number) => {
  const tenantId = await server.addTenant();
  const service = await server.addService(["a.read"], tenantId);
  keepSecret(service.secret, service.token);
  const wrong = wrongCredentials(service);
  const known: Known = {
    tenant_id: [tenantId],
    service_id: [service.serviceId],
    secret_id: [service.secretId],
    service_token: [service.token],
    key: [service.key],
    secret: [service.secret],
    permissions: ["a.read"],
  };
  const spoilt: Known = { ...known, secret: wrong, service_token: wrong, page_token: wrong, label: wrong };
  const { input } = rpc.method;
  const requests = [
    ...[known, {}, spoilt].flatMap((values) => sampleMessages(input, values)),
    ...fc.sample(wildMessage(input, spoilt), { numRuns: runs }),
  ];
  const tokens = [server.rootToken, service.token, service.secret, ...wrong];
  for (const caller of callers) {
    for (const request of requests) await send(caller, rpc, request, bearer(server.rootToken));
    for (const token of tokens) await send(caller, rpc, requests[0]!, bearer(token));
    for (const token of wrong)
      await send(caller, rpc, requests[0]!, { ...bearer(server.rootToken), "x-actor-token": token });
    await send(caller, rpc, requests[0]!, {});
  }
};

/** The server as people run it, whose every line is read; slonik's own logger is asked to speak. */
const startProcess = async (databaseUrl: string): Promise<{ child: Child; grpcPort: number }> => {
  const env = {
    PATH: process.env["PATH"],
    NODE_ENV: "production",
    JWT_KEYS_FILE: inject("jwtKeysFile"),
    DATABASE_URL: databaseUrl,
    SECRET_PEPPERS: `1:${PEPPER.toString("base64")}`,
    LOG_LEVEL: "trace",
    GRPC_HOST: "127.0.0.1",
    GRPC_PORT: "0",
    HTTP_PORT: "0",
    SHUTDOWN_DELAY: "0s",
    ROARR_LOG: "true",
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
  return { child: started, grpcPort };
};

beforeAll(async () => {
  database = await createDatabase();
  const log = createLog("trace", { write: (line) => void written.push(line) });
  server = await launchService("grpc", { log, databaseUrl: database.url });
  const started = await startProcess(database.url);
  child = started.child;
  callers = [rawGrpc(server), rawConnect(server), rawGrpc({ ...server, grpcPort: started.grpcPort })];
  keepSecret(server.rootSecret, server.rootToken);
  // How many the random calls below make varies: these alone are a good part of what the search must have to look for.
  for (let n = 0; n < 60; n++) {
    const signIn = { key: "root", secret: server.rootSecret };
    keepSecret((await server.services.authenticateService(signIn)).serviceToken);
  }
  for (const encoding of ["base64", "base64url", "hex"] as const) secrets.add(PEPPER.toString(encoding));
  secrets.add(new URL(database.url).password);
});

afterAll(async () => {
  for (const caller of callers) caller.close();
  child.kill("SIGTERM");
  if (child.exitCode === null) await once(child, "exit");
  await server.stop();
});

/** The RPCs that were answered with each of these codes. */
const answeredWith = (...wanted: readonly number[]) =>
  rpcs.map(({ name }) => name).filter((name) => wanted.every((code) => codes.get(name)?.has(code)));

test("every RPC succeeds, is refused, and breaks, while the log and all answers are kept", async () => {
  for (const rpc of rpcs) await drive(rpc, 5);
  expect(answeredWith(0, Code.Unauthenticated)).toEqual(rpcs.map(({ name }) => name));

  // The audit payloads, and what stands in the database in place of the credentials.
  const { pool } = server;
  const payloads = await pool.any(sql.unsafe`SELECT a.payload_json::text AS text FROM audit_events a`);
  expect(payloads.length).toBeGreaterThan(50);
  told.push(...payloads.map((row) => (row as { text: string }).text));
  const hashes = await pool.any(sql.unsafe`
    SELECT secret_hash_text AS hash FROM service_secrets UNION ALL SELECT token_hash_text FROM service_sessions`);
  for (const row of hashes) secrets.add((row as { hash: string }).hash.replace(/^\d+:/, ""));

  // Rows that PostgreSQL refuses, quoting them; then a table that is not there; then no database.
  const rpc = (name: string) => rpcs.filter((one) => one.name === name);
  const breaking = [...rpc("RegisterService"), ...rpc("AuthenticateService"), ...rpc("CreateServiceSecret")];
  const signIn = { ...(await server.addService(["a.read"])) };
  keepSecret(signIn.secret, signIn.token);
  await pool.query(
    sql.unsafe`ALTER TABLE service_secrets ADD CONSTRAINT broken CHECK (created_utc = '-infinity') NOT VALID`,
  );
  await pool.query(
    sql.unsafe`ALTER TABLE service_sessions ADD CONSTRAINT broken CHECK (created_utc = '-infinity') NOT VALID`,
  );
  const known: Known = {
    key: [signIn.key],
    secret: [signIn.secret],
    service_id: [signIn.serviceId],
    permissions: ["a.read"],
  };
  const breakAll = async (some: readonly Rpc[]) => {
    for (const one of some)
      for (const caller of callers)
        for (const request of [
          ...sampleMessages(one.method.input, known),
          ...sampleMessages(one.method.input, { key: [uniqueKey()] }),
        ])
          await send(caller, one, request, bearer(server.rootToken));
  };
  await breakAll(breaking);
  expect(answeredWith(Code.Internal).sort()).toEqual(breaking.map(({ name }) => name).sort());
  await pool.query(sql.unsafe`ALTER TABLE service_permissions RENAME TO service_permissions_away`);
  await breakAll(rpcs);
  expect(answeredWith(Code.Internal).length).toBeGreaterThan(rpcs.length / 2);

  await database.drop();
  await breakAll(rpcs);
  expect(answeredWith(Code.Unavailable).length).toBeGreaterThan(rpcs.length / 2);
}, 60_000);

test.each([
  ["the log", written],
  ["what callers and auditors are told", told],
])("%s has none of the secrets, tokens, hashes, peppers and passwords", (_, lines) => {
  const all = lines.join("\n");
  expect(all.length).toBeGreaterThan(10_000);
  expect(secrets.size).toBeGreaterThan(500);
  const found = [...secrets].filter((secret) => all.includes(secret) || all.includes(encodeURIComponent(secret)));
  // Also those that no caller was ever given: what has a credential's form or a stored hash's.
  const alike = all.match(/sk[st]_[0-9a-f-]{36}_\w{43}|\b\d+:[\w-]{43}\b/g) ?? [];
  expect([...found, ...alike].map((secret) => all.slice(Math.max(0, all.indexOf(secret) - 150)).slice(0, 300))).toEqual(
    [],
  );
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
