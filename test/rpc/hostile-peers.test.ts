import zlib from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { type DatabasePool, sql } from "slonik";
import { beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { HealthCheckRequestSchema } from "../../src/gen/grpc/health/v1/health_pb.ts";
import type { RunningServer } from "../../src/server.ts";
import { openPool } from "../support/admin.ts";
import type { TestDatabase } from "../support/database.ts";
import { frame } from "../support/frames.ts";
import { untilSomebodyWaits } from "../support/lock-waiters.ts";
import type { LoggedLines } from "../support/logged-lines.ts";
import { onFileFinished } from "../support/per-file.ts";
import { PATHS, freshToken, openGrpc, reasonIn, sendGrpc, serveRaw } from "../support/raw-grpc.ts";
import { serve } from "../support/serve.ts";

const { LIST, AUDIT, AUTHENTICATE, CHECK, REFLECT } = PATHS;

const OK = "0";
const INVALID_ARGUMENT = "3";
const DEADLINE_EXCEEDED = "4";
const NOT_FOUND = "5";
const RESOURCE_EXHAUSTED = "8";
const UNIMPLEMENTED = "12";
const UNAVAILABLE = "14";
const UNAUTHENTICATED = "16";

let database: TestDatabase;
let server: RunningServer;
let pool: DatabasePool;
let logged: LoggedLines;
beforeAll(async () => {
  ({ database, server, logged } = await serveRaw({ CALL_TIMEOUT: "500ms" }));
  pool = await openPool(database.url, 2);
  onFileFinished(() => pool.end());
});

const checkOf = (service: string) => toBinary(HealthCheckRequestSchema, create(HealthCheckRequestSchema, { service }));

/** Looks up no token and lists no event while it runs `work`. */
const whileLocked = <T>(
  table: string,
  work: (tx: Parameters<typeof untilSomebodyWaits>[0]) => Promise<T>,
): Promise<T> =>
  pool.transaction(async (tx) => {
    await tx.query(sql.unsafe`LOCK TABLE ${sql.identifier([table])} IN ACCESS EXCLUSIVE MODE`);
    return work(tx);
  });

test("of a message hardly anything leaves its sender before its caller was looked up", async () => {
  const authorization = await freshToken(server);
  const session = openGrpc(server);
  const { waiting } = await whileLocked("service_sessions", async (tx) => {
    const call = sendGrpc(session, LIST, frame(Buffer.alloc(1_000_000)), true, { authorization });
    await untilSomebodyWaits(tx);
    // By its answer all that could come before it has come.
    expect(await sendGrpc(session, CHECK, frame(""), true)).toMatchObject({ status: OK });
    expect((session.socket as { readonly bytesWritten: number }).bytesWritten).toBeLessThan(200_000);
    return { waiting: call };
  });
  expect((await waiting).status).toBe(INVALID_ARGUMENT);
});

test("a caller who is looked up for longer than CALL_TIMEOUT keeps the deadline of his own", async () => {
  const headers = { authorization: await freshToken(server), "grpc-timeout": "30S" };
  const answer = await whileLocked("service_sessions", async (tx) => {
    const waiting = sendGrpc(openGrpc(server), LIST, frame(""), true, headers);
    await untilSomebodyWaits(tx);
    // CALL_TIMEOUT later, and once more, since it is looked at only now and then what is late.
    for (let round = 0; round < 3; round++)
      await sendGrpc(openGrpc(server), AUTHENTICATE, frame("x").subarray(0, 5), false);
    return { waiting };
  });
  expect(await answer.waiting).toMatchObject({ status: OK });
});

test("so it is over HTTP/1.1, where his message has come and is not read", async () => {
  const headers = { authorization: await freshToken(server), "connect-timeout-ms": "30000" };
  const answer = await whileLocked("service_sessions", async (tx) => {
    const waiting = fetch(`http://127.0.0.1:${server.httpPort}${LIST}`, {
      method: "POST",
      headers: { ...headers, "content-type": "application/json" },
      body: "{}",
    });
    await untilSomebodyWaits(tx);
    // CALL_TIMEOUT and a second later, by which a message must have come.
    for (let round = 0; round < 4; round++)
      await sendGrpc(openGrpc(server), AUTHENTICATE, frame("x").subarray(0, 5), false);
    return { waiting };
  });
  expect((await answer.waiting).status).toBe(200);
});

test("a caller's deadline that passes while his answer is made has its reason, whosever timer is first", async () => {
  const authorization = await freshToken(server);
  const ids = Array.from({ length: 20 }, (_, n) => `late ${n}`);
  const answers = await whileLocked("audit_events", () =>
    Promise.all(
      ids.map((id) => {
        const headers = { authorization, "grpc-timeout": "100m", "x-request-id": id };
        return sendGrpc(openGrpc(server), AUDIT, frame(""), true, headers);
      }),
    ),
  );
  for (const answer of answers) expect(reasonIn(answer)).toContain("DEADLINE");
  for (const id of ids) expect(logged.of(id)).toMatchObject([{ reason: "DEADLINE" }]);
});

describe("a header that is not printable", () => {
  test.each(["abc\u00e9", "abc\tdef"])("is an actor token that is none, and not no actor: %j", async (token) => {
    const headers = { authorization: await freshToken(server), "x-actor-token": token };
    const answer = await sendGrpc(openGrpc(server), LIST, frame(""), true, headers);
    expect(answer.status).toBe(UNAUTHENTICATED);
    expect(reasonIn(answer)).toContain("ACTOR_TOKEN_INVALID");
  });

  test("is no request id: one is made", async () => {
    const answer = await sendGrpc(openGrpc(server), AUTHENTICATE, frame(""), true, { "x-request-id": "abc\u00e9" });
    expect(answer.requestId).toMatch(/^[0-9a-f-]{36}$/);
  });

  test("is written nowhere: it may be a token", async () => {
    const said = ["error", "warn", "log", "info"] as const;
    const spies = said.map((name) => vi.spyOn(console, name).mockImplementation(() => undefined));
    onTestFinished(() => spies.forEach((spy) => spy.mockRestore()));
    const headers = { authorization: `${await freshToken(server)}\u00e9` };
    expect((await sendGrpc(openGrpc(server), LIST, frame(""), true, headers)).status).toBe(UNAUTHENTICATED);
    for (const spy of spies) expect(spy).not.toHaveBeenCalled();
  });
});

describe("what one call sends ends no other of its connection", () => {
  test.each([
    ["a long deadline that is none", AUTHENTICATE, frame(""), { "grpc-timeout": "x".repeat(45_000) }, INVALID_ARGUMENT],
    ["a long name of an encoding", AUTHENTICATE, frame("", 1), { "grpc-encoding": "x".repeat(45_000) }, UNIMPLEMENTED],
    ["a long name of a service", CHECK, frame(checkOf('"'.repeat(60_000))), {}, NOT_FOUND],
    ["one that is cut between two characters", CHECK, frame(checkOf("😀".repeat(10_000))), {}, NOT_FOUND],
    ["one that is cut within a character", CHECK, frame(checkOf(`x${"😀".repeat(10_000)}`)), {}, NOT_FOUND],
  ])("%s", async (_, path, bytes, headers, status) => {
    const session = openGrpc(server);
    expect(await sendGrpc(session, path, bytes, true, headers)).toMatchObject({ status });
    expect(await sendGrpc(session, CHECK, frame(""), true)).toMatchObject({ status: OK, rst: 0 });
  });

  test.each([
    ["an RPC, of which two alone are decompressed", AUTHENTICATE, 2],
    ["reflection, which refuses so many", REFLECT, 0],
  ])("many compressed messages at once, to %s", async (_, path, most) => {
    const inflated = vi.spyOn(zlib, "createGunzip");
    onTestFinished(() => inflated.mockRestore());
    const many = Buffer.concat(Array.from({ length: 300 }, () => frame(zlib.gzipSync(""), 1)));
    const answer = await sendGrpc(openGrpc(server), path, many, false, { "grpc-encoding": "gzip" });
    expect(answer.status).toBe(most === 0 ? RESOURCE_EXHAUSTED : UNIMPLEMENTED);
    expect(inflated.mock.calls.length).toBeLessThanOrEqual(most);
  });
});

test("a message of who may call is read beyond what strangers may send, compressed too", async () => {
  const headers = { authorization: await freshToken(server), "grpc-encoding": "gzip" };
  // A field that nobody knows, of 100,000 bytes.
  const message = Buffer.concat([Buffer.from([0x7a, 0xa0, 0x8d, 0x06]), Buffer.alloc(100_000)]);
  for (const bytes of [frame(message), frame(zlib.gzipSync(message), 1)]) {
    expect(await sendGrpc(openGrpc(server), LIST, bytes, true, headers)).toMatchObject({ status: OK });
  }
});

describe("a deadline by grpc-timeout", () => {
  test.each(["2592000S", "99999999H"])("of a month and more is one: %s", async (timeout) => {
    const headers = { authorization: await freshToken(server), "grpc-timeout": timeout };
    expect(await sendGrpc(openGrpc(server), LIST, frame(""), true, headers)).toMatchObject({ status: OK });
  });

  test.each(["-5S", "123456789S", "junk5Sjunk", "5"])("of another form is refused: %s", async (timeout) => {
    const headers = { authorization: await freshToken(server), "grpc-timeout": timeout };
    const answer = await sendGrpc(openGrpc(server), LIST, frame(""), true, headers);
    expect(answer.status).toBe(INVALID_ARGUMENT);
  });
});

test.each([
  ["alone", frame("abc").subarray(0, 6)],
  ["after another", Buffer.concat([frame(""), frame("abc").subarray(0, 6)])],
])("a message that is cut short, %s, is refused as one that cannot be read", async (_, bytes) => {
  const headers = { authorization: await freshToken(server) };
  const answer = await sendGrpc(openGrpc(server), LIST, bytes, true, headers);
  expect(answer.status).toBe(INVALID_ARGUMENT);
  expect(reasonIn(answer)).toContain("INVALID_REQUEST");
});

test("reflection that is kept open is answered, and ends with its status after CALL_TIMEOUT", async () => {
  // list_services: ""
  const request = frame(Buffer.from([0x3a, 0x00]));
  const answer = await sendGrpc(openGrpc(server), REFLECT, request, false);
  expect(answer).toMatchObject({ status: DEADLINE_EXCEEDED, rst: 0 });
});

test("messages that do not come do not keep a shutdown for the whole SHUTDOWN_GRACE, and their senders are told", async () => {
  const leaving = await serve(database.url, { SHUTDOWN_DELAY: "0ms", SHUTDOWN_GRACE: "10m", CALL_TIMEOUT: "10m" });
  const session = openGrpc(leaving);
  session.on("error", () => undefined);
  // Several: what grpc-js itself would do with the last one is the connection's end to its caller.
  const calls = [1, 2].map(() => sendGrpc(session, AUTHENTICATE, frame("x").subarray(0, 5), false));
  // What came before it on this connection is there.
  await sendGrpc(session, CHECK, frame(""), true);
  await leaving.stop();
  for (const answer of await Promise.all(calls)) {
    expect(answer.status).toBe(UNAVAILABLE);
    expect(reasonIn(answer)).toContain("SHUTTING_DOWN");
  }
});

describe("spaces around a header's value", () => {
  test.each(["abc ", " abc", "abc\t", " "])("are no way to lose an actor token that is none: %j", async (token) => {
    const headers = { authorization: await freshToken(server), "x-actor-token": token };
    const answer = await sendGrpc(openGrpc(server), LIST, frame(""), true, headers);
    expect(answer.status).toBe(UNAUTHENTICATED);
    expect(reasonIn(answer)).toContain("ACTOR_TOKEN_INVALID");
  });

  test("do not count, as over HTTP/1", async () => {
    const headers = { authorization: ` ${await freshToken(server)} `, "grpc-timeout": " 0m " };
    const answer = await sendGrpc(openGrpc(server), LIST, frame(""), true, headers);
    expect(reasonIn(answer)).toContain("DEADLINE");
  });
});
