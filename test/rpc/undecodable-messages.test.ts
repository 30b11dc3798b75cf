import { randomUUID } from "node:crypto";
import { gzipSync } from "node:zlib";
import { Code } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { frame } from "../support/frames.ts";
import { type LoggedLines, loggedLines } from "../support/logged-lines.ts";
import { type RawAnswer, type RawCaller, badFieldsOf, errorInfoOf, rawConnect, rawGrpc } from "../support/raw-calls.ts";
import { bearer, rpcs } from "../support/rpcs.ts";
import { type SignedInService, type TestService, launchService } from "../support/service.ts";

let logged: LoggedLines;
let server: TestService;
let powerless: SignedInService;
let grpc: RawCaller;
let connect: RawCaller;

const MESSAGE_MAX = 65_536;

beforeAll(async () => {
  logged = loggedLines();
  server = await launchService("grpc", { log: logged.log, env: { MESSAGE_MAX_BYTES: String(MESSAGE_MAX) } });
  powerless = await server.addService([]);
  [grpc, connect] = [rawGrpc(server), rawConnect(server)];
});

afterAll(async () => {
  for (const wire of [grpc, connect]) wire.close();
  await server.stop();
});

const methodOf = (name: string) => rpcs.find((rpc) => rpc.name === name)!.method;

const UNENDED = Buffer.from([0x12, 0x7f, 0x41]);
const UNENDED_JSON = '{"label":';
const NOT_UTF8 = Buffer.concat([Buffer.from('{"label":"'), Buffer.from([0xc3, 0x28]), Buffer.from('"}')]);

type Headers = Readonly<Record<string, string>>;
interface Wire {
  readonly wire: string;
  readonly send: (rpc: string, headers: Headers) => Promise<RawAnswer>;
}

const byHand = (rpc: string, body: Uint8Array<ArrayBuffer>, headers: Headers): Promise<Response> => {
  const method = methodOf(rpc);
  const url = `http://127.0.0.1:${server.httpPort}/${method.parent.typeName}/${method.name}`;
  return fetch(url, { method: "POST", headers: { "content-type": "application/json", ...headers }, body });
};

const WIRES: readonly Wire[] = [
  { wire: "gRPC", send: (rpc, headers) => grpc.call(methodOf(rpc), UNENDED, headers) },
  { wire: "Connect, binary", send: (rpc, headers) => connect.call(methodOf(rpc), UNENDED, headers) },
  { wire: "Connect, JSON", send: (rpc, headers) => connect.call(methodOf(rpc), UNENDED_JSON, headers) },
];

describe.each(WIRES)("$wire: a message that cannot be decoded", ({ send }) => {
  test.each(["CreateTenant", "WatchAuditEvents", "AuthenticateService"])(
    "to %s is INVALID_REQUEST, under its request id, which the log has too",
    async (rpc) => {
      const requestId = randomUUID();
      const answer = await send(rpc, { ...bearer(server.rootToken), "x-request-id": requestId });
      expect(answer.code).toBe(Code.InvalidArgument);
      expect(errorInfoOf(answer)).toMatchObject({ reason: "INVALID_REQUEST", metadata: { request_id: requestId } });
      expect(badFieldsOf(answer)).toEqual([""]);
      await expect
        .poll(() => logged.of(requestId))
        .toMatchObject([{ code: "InvalidArgument", reason: "INVALID_REQUEST" }]);
    },
  );

  test("is no news to who may not call", async () => {
    expect(errorInfoOf(await send("CreateTenant", {}))?.reason).toBe("CALLER_TOKEN_INVALID");
    const answer = await send("CreateTenant", bearer(powerless.token));
    expect(errorInfoOf(answer)?.reason).toBe("PERMISSION_MISSING");
  });
});

test("gRPC-Web says the same in its trailers", async () => {
  const headers = { ...bearer(server.rootToken), "content-type": "application/grpc-web+proto", "x-request-id": "web" };
  const response = await byHand("CreateTenant", frame(UNENDED), headers);
  const said = `${JSON.stringify([...response.headers])}${await response.text()}`;
  for (const part of [/grpc-status(: |",")3/, /grpc-status-details-bin/, /x-request-id(: |",")web/])
    expect(said).toMatch(part);
});

test("text that is no UTF-8 is refused, not mended", async () => {
  const response = await byHand("CreateTenant", NOT_UTF8, bearer(server.rootToken));
  expect(response.status).toBe(400);
  expect(await response.text()).toContain("the message cannot be decoded");
});

describe("over HTTP", () => {
  test.each([
    ["{}", { "connect-timeout-ms": "9999999999" }, /^\{\}$/],
    [frame(""), { "content-type": "application/grpc-web+proto", "grpc-timeout": "99999999H" }, /grpc-status: 0/],
  ])("a deadline beyond what a timer holds is one all the same: %s %j", async (message, headers, says) => {
    const response = await byHand("ListTenants", Buffer.from(message), { ...bearer(server.rootToken), ...headers });
    expect(await response.text()).toMatch(says);
  });

  const large = Buffer.alloc(MESSAGE_MAX + 1, " ");

  test("a message too large has its code alone, and is logged by it", async () => {
    const response = await byHand("CreateTenant", large, { ...bearer(server.rootToken), "x-request-id": "large" });
    expect(await response.json()).toEqual({ code: "resource_exhausted", message: expect.any(String) as string });
    expect(response.headers.get("x-request-id")).toBe("large");
    await expect.poll(() => logged.of("large")).toMatchObject([{ code: "ResourceExhausted" }]);
  });

  test.each([
    ["large", large, {}],
    ["compressed", gzipSync(large), { "content-encoding": "gzip" }],
    ["compressed, it does not say truly how", large, { "content-encoding": "gzip" }],
  ])("the message of who may not call is not read: %s", async (_, body, headers) => {
    const response = await byHand("CreateTenant", body, headers);
    expect(await response.json()).toMatchObject({ code: "unauthenticated" });
  });
});

describe("a value in JSON that is none of its field's type", () => {
  const email = "ann@example.com";
  const send = (rpc: string, request: object) =>
    connect.call(methodOf(rpc), JSON.stringify(request), bearer(server.rootToken));

  test.each([
    ["AssignRole", { startTime: "yesterday" }, "start_time", "RFC 3339"],
    ["AssignRole", { start_time: 5 }, "start_time", "RFC 3339"],
    ["AssignRole", { startTime: "2027-02-29T00:00:00Z" }, "start_time", "RFC 3339"],
    ["AssignRole", { start_time: "2027-02-29T00:00:00Z" }, "start_time", "RFC 3339"],
    ["AssignRole", { endTime: "2027-04-30T24:00:00Z" }, "end_time", "RFC 3339"],
    ["AuthenticateService", { key: "root", ttl: "5" }, "ttl", "seconds and an s"],
    ["UpdateUser", { updateMask: "display_name" }, "update_mask", "lowerCamelCase"],
    ["ListUsers", { pageSize: "abc" }, "page_size", "must be a whole number"],
    ["CreateTenant", { label: 5 }, "label", "must be a string"],
    ["ListServiceSessions", { includeEnded: "yes" }, "include_ended", "must be true or false"],
    ["CreateRole", { capabilityKeys: "edit" }, "capability_keys", "must be a list"],
    ["CreateRole", { capabilityKeys: ["edit", 5] }, "capability_keys[1]", "must be a string"],
    ["LoginWithPassword", { client: "192.0.2.1" }, "client", "must be an object"],
    ["LoginWithPassword", { client: { ip: 5 } }, "client.ip", "must be a string"],
    ["ImportUsers", { users: [{ email }, { email, createTime: "nope" }] }, "users[1].create_time", "RFC 3339"],
    ["ImportUsers", { users: [{ email, createTime: "2023-06-31T00:00:00Z" }] }, "users[0].create_time", "RFC 3339"],
    ["BatchCheckAccess", { checks: [{ userId: {} }] }, "checks[0].user_id", "must be a string"],
  ])("%s %j is refused by %s", async (rpc, request, field, description) => {
    const answer = await send(rpc, request);
    expect(errorInfoOf(answer)?.reason).toBe("INVALID_REQUEST");
    expect(badFieldsOf(answer)).toEqual([field]);
    expect(answer.message).toContain(description);
  });

  test.each(["0004-02-29T00:00:00Z", "2000-02-29T23:59:59Z", "2028-02-29T00:00:00+14:00", "2027-12-31T00:00:00.5Z"])(
    "a day that the calendar has is read: %s",
    async (after) => expect(await send("ListAuditEvents", { after, pageSize: 1 })).toMatchObject({ code: 0 }),
  );

  test("in an unknown field is ignored with it, and in a long message refused without its field", async () => {
    expect((await send("ListTenants", { kind: { label: 5 }, pageSize: 1 })).code).toBe(0);
    const label = "x".repeat(MESSAGE_MAX - 1_000);
    const long = await send("CreateTenant", { tenantId: 5, label });
    expect(errorInfoOf(long)?.reason).toBe("INVALID_REQUEST");
    expect(badFieldsOf(long)).toEqual([""]);
  });
});

describe("an enum value of a name that the proto does not have", () => {
  const email = "ann@example.com";
  const tenantId = randomUUID();
  test.each([
    ["ListTenants", { state: "FOO" }, "state"],
    ["ListUsers", { tenant_id: tenantId, state: "INACTIVE" }, "state"],
    ["ImportUsers", { tenantId, users: [{ email }, { email, state: "USER_STATE_ASLEEP" }] }, "users[1].state"],
    ["CheckVisibility", { tenantId, userId: tenantId, nodeId: tenantId, scope: "read" }, "scope"],
  ])("%s refuses as it refuses an unknown number: by the field's name", async (rpc, request, field) => {
    const answer = await connect.call(methodOf(rpc), JSON.stringify(request), bearer(server.rootToken));
    expect(errorInfoOf(answer)?.reason).toBe("INVALID_REQUEST");
    expect(badFieldsOf(answer)).toEqual([field]);
    expect(answer.message).toContain("value must be one of the defined enum values");
  });

  test("in an unknown field is ignored with it, and known names and numbers are read", async () => {
    for (const state of ['"TENANT_STATE_ACTIVE"', "1", "null"]) {
      const body = `{"state":${state},"kind":"FOO","more":{"state":"FOO"}}`;
      const answer = await connect.call(methodOf("ListTenants"), body, bearer(server.rootToken));
      expect(answer.code).toBe(0);
    }
  });
});
