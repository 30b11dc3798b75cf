import { type ClientHttp2Session, type IncomingHttpHeaders, connect } from "node:http2";
import { gzipSync } from "node:zlib";
import { Code } from "@connectrpc/connect";
import { codeFromString } from "@connectrpc/connect/protocol-connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { frame } from "../support/frames.ts";
import { bearer } from "../support/rpcs.ts";
import { type TestService, launchService } from "../support/service.ts";

let service: TestService;
let session: ClientHttp2Session;

beforeAll(async () => {
  service = await launchService("grpc", { env: { GRPC_REFLECTION: "on" } });
  session = connect(`http://127.0.0.1:${service.grpcPort}`);
});
afterAll(async () => {
  session.close();
  await service.stop();
});

const COMPRESSED = 1;
const LIST = "/org.v1.OrgService/ListTenants";
const WATCH = "/org.v1.OrgService/WatchAuditEvents";
const CHECK = "/grpc.health.v1.Health/Check";
const REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

const garbage = Buffer.from([0xff, 0xff]);
const cutShort = gzipSync(Buffer.alloc(1_000)).subarray(0, 15);

/** What it was answered with, by a client that checks nothing of what it sends. */
const grpc = (path: string, body: Buffer, headers: Readonly<Record<string, string>>) =>
  new Promise<number>((resolve, reject) => {
    const usual = { ":method": "POST", ":path": path, "content-type": "application/grpc", te: "trailers" };
    const stream = session.request({ ...usual, ...bearer(service.rootToken), ...headers });
    // An answer without a message has its trailers in its header.
    const answer = ({ "grpc-status": code }: IncomingHttpHeaders) => code !== undefined && resolve(Number(code));
    stream.on("response", answer).on("trailers", answer);
    stream.on("error", reject);
    stream.resume().end(body);
  });

const gzip = { "grpc-encoding": "gzip" };

test.each([
  ["no gzip, though it says so", LIST, frame(garbage, COMPRESSED), gzip],
  ["gzip that is cut short", LIST, frame(cutShort, COMPRESSED), gzip],
  ["no deflate, though it says so", LIST, frame(garbage, COMPRESSED), { "grpc-encoding": "deflate" }],
  ["no gzip, to a stream", WATCH, frame(garbage, COMPRESSED), gzip],
  ["no deadline that gRPC knows", LIST, frame(""), { "grpc-timeout": "soon" }],
  ["no message, to health", CHECK, frame(garbage), {}],
  ["no message, to reflection", REFLECTION, frame(garbage), {}],
])("grpc: %s is INVALID_ARGUMENT, and the next call is answered", async (_, path, body, headers) => {
  expect(await grpc(path, body, headers)).toBe(Code.InvalidArgument);
  expect(await grpc(LIST, frame(""), {})).toBe(0);
});

const post = (path: string, body: Buffer | string, headers: Readonly<Record<string, string>>) =>
  fetch(`http://127.0.0.1:${service.httpPort}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...bearer(service.rootToken), ...headers },
    body,
  });

test.each([
  ["no gzip, though it says so", garbage, "gzip"],
  ["gzip that is cut short", cutShort, "gzip"],
  ["no brotli, though it says so", garbage, "br"],
])("connect: %s is INVALID_ARGUMENT", async (_, body, encoding) => {
  const response = await post(LIST, body, { "content-encoding": encoding });
  expect(codeFromString(((await response.json()) as { code: string }).code as never)).toBe(Code.InvalidArgument);
});

test.each([
  ["no gzip, though it says so", gzip],
  ["compressed, it does not say how", {}],
])("gRPC-Web: %s is INVALID_ARGUMENT", async (_, headers) => {
  const web = { "content-type": "application/grpc-web+proto", ...headers };
  const response = await post(LIST, frame(garbage, COMPRESSED), web);
  expect(await response.text()).toContain("grpc-status: 3\r\n");
});

describe("what is said of JSON that cannot be read has nothing of what was sent", () => {
  const LOGIN = "/auth.v1.AuthService/LoginWithOtp";
  const REGISTER = "/service_identity.v1.ServiceIdentityService/RegisterService";
  test.each([
    ["a code as a number", LOGIN, '{"code":271828}', "code: must be a string"],
    ["a code in a list", LOGIN, '{"code":["271828"]}', "code: must be a string"],
    ["a list's item", REGISTER, '{"permissions":["a",271828]}', "permissions[1]: must be a string"],
    ["another thing than a message", LOGIN, '"271828"', "LoginWithOtpRequest from JSON"],
    ["a value without quotes", LOGIN, '{"code":x271828}', "the message is no JSON"],
    ["a name twice", LOGIN, '{"271828":1,"271828":2}', "LoginWithOtpRequest from JSON"],
  ])("%s", async (_, path, body, says) => {
    const response = await post(path, body, {});
    const { code, message } = (await response.json()) as { code: string; message: string };
    expect(code).toBe("invalid_argument");
    expect(message).toContain(`${says})`);
    expect(message).not.toContain("271828");
  });

  test("to a stream too", async () => {
    const body = frame('{"tenantId":271828}');
    const text = await (await post(WATCH, body, { "content-type": "application/connect+json" })).text();
    expect(text).toContain("tenant_id: must be a string");
    expect(text).not.toContain("271828");
  });
});
