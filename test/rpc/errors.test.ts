import { randomUUID } from "node:crypto";
import { create, toBinary, toJsonString } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { REASONS, type Reason } from "../../src/rpc/refusal.ts";
import { sampleMessages } from "../support/messages.ts";
import { type RawAnswer, type RawCaller, badFieldsOf, errorInfoOf, rawConnect, rawGrpc } from "../support/raw-calls.ts";
import { bearer, rpcs } from "../support/rpcs.ts";
import { type SignedInService, type TestService, launchService } from "../support/service.ts";

let server: TestService;
let wires: Readonly<Record<"grpc" | "connect JSON" | "connect binary", RawCaller>>;
let tenantsOwn: SignedInService;
let powerless: SignedInService;
let rootId: string;

beforeAll(async () => {
  server = await launchService("grpc");
  const [grpc, connect] = [rawGrpc(server), rawConnect(server)];
  wires = { grpc, "connect JSON": connect, "connect binary": connect };
  powerless = await server.addService([]);
  const { service } = await server.services.getService({ selector: { case: "key", value: "root" } });
  rootId = service!.serviceId;
  tenantsOwn = await server.addService(["*"], await server.addTenant());
});

afterAll(async () => {
  for (const wire of Object.values(wires)) wire.close();
  await server.stop();
});

const BAD_REQUEST: number = Code.InvalidArgument;

type Wire = keyof typeof wires;
const WIRES = ["grpc", "connect JSON", "connect binary"] as const;

type Headers = Readonly<Record<string, string>>;

const methodOf = (name: string) => rpcs.find((rpc) => rpc.name === name)!.method;

const send = (wire: Wire, name: string, request: object, headers: Headers): Promise<RawAnswer> => {
  const method = methodOf(name);
  const message = create(method.input, request as never);
  const body = wire === "connect JSON" ? toJsonString(method.input, message) : toBinary(method.input, message);
  return wires[wire].call(method, body, headers);
};

const asRoot = () => bearer(server.rootToken);

interface Refused {
  readonly reason: Reason;
  readonly rpc: string;
  readonly request: () => object;
  readonly headers?: () => Headers;
  readonly metadata?: () => Readonly<Record<string, string>>;
  readonly fields?: readonly string[];
}

const unknown = randomUUID();

const REFUSALS: readonly Refused[] = [
  {
    reason: "INVALID_REQUEST",
    rpc: "CreateTenant",
    request: () => ({ tenantId: "x", label: "" }),
    fields: ["tenant_id", "label"],
  },
  {
    reason: "INVALID_REQUEST",
    rpc: "RegisterService",
    request: () => ({ key: "Bad Key", label: "Good", permissions: ["a", "b c", "d", "*.e"] }),
    fields: ["key", "permissions[1]", "permissions[3]"],
  },
  { reason: "INVALID_REQUEST", rpc: "ListTenants", request: () => ({ pageSize: -1 }), fields: ["page_size"] },
  { reason: "INVALID_REQUEST", rpc: "ListTenants", request: () => ({ pageToken: "x" }), fields: ["page_token"] },
  {
    reason: "INVALID_REQUEST",
    rpc: "UpdateTenant",
    request: () => ({ tenantId: unknown, label: "x", updateMask: { paths: ["name"] } }),
    fields: ["update_mask"],
  },
  {
    reason: "INVALID_REQUEST",
    rpc: "RotateServiceSecret",
    request: () => ({ serviceId: unknown, overlap: { seconds: 604_801n } }),
    fields: ["overlap"],
  },
  { reason: "INVALID_REQUEST", rpc: "GetService", request: () => ({}), fields: ["selector"] },
  {
    reason: "CALLER_TOKEN_INVALID",
    rpc: "GetTenant",
    request: () => ({ tenantId: unknown }),
    headers: () => ({ authorization: "Bearer x" }),
  },
  {
    reason: "ACTOR_TOKEN_INVALID",
    rpc: "GetTenant",
    request: () => ({ tenantId: unknown }),
    headers: () => ({ ...asRoot(), "x-actor-token": "x" }),
  },
  {
    reason: "SERVICE_CREDENTIALS_INVALID",
    rpc: "AuthenticateService",
    request: () => ({ key: "root", secret: "x" }),
    headers: () => ({}),
  },
  {
    reason: "TENANT_MISMATCH",
    rpc: "GetTenant",
    request: () => ({ tenantId: unknown }),
    headers: () => bearer(tenantsOwn.token),
  },
  {
    reason: "PERMISSION_MISSING",
    rpc: "CreateTenant",
    request: () => ({ label: "x" }),
    headers: () => bearer(powerless.token),
    metadata: () => ({ permission: "org.tenant.write" }),
  },
  {
    reason: "TENANT_NOT_FOUND",
    rpc: "GetTenant",
    request: () => ({ tenantId: unknown }),
    metadata: () => ({ tenant_id: unknown }),
  },
  {
    reason: "SERVICE_NOT_FOUND",
    rpc: "GetService",
    request: () => ({ selector: { case: "key", value: "nobody" } }),
    metadata: () => ({ key: "nobody" }),
  },
  {
    reason: "SERVICE_SECRET_NOT_FOUND",
    rpc: "RevokeServiceSecret",
    request: () => ({ serviceId: tenantsOwn.serviceId, secretId: unknown }),
    metadata: () => ({ secret_id: unknown }),
  },
  {
    reason: "SERVICE_KEY_TAKEN",
    rpc: "RegisterService",
    request: () => ({ key: "root", label: "Root" }),
    metadata: () => ({ key: "root" }),
  },
  {
    reason: "LAST_ROOT_SERVICE",
    rpc: "RevokeServicePermissions",
    request: () => ({ serviceId: rootId, permissions: ["*"] }),
  },
];

describe.each(WIRES)("%s", (wire) => {
  test.each(REFUSALS)("$rpc says $reason, whose error it is, and under which request", async (refusal) => {
    const { reason, rpc, request, headers = asRoot, metadata, fields } = refusal;
    const requestId = randomUUID();
    const answer = await send(wire, rpc, request(), { ...headers(), "x-request-id": requestId });
    expect(answer).toMatchObject({ code: REASONS[reason].code, requestId });
    expect(answer.message).toContain(REASONS[reason].message);
    expect(errorInfoOf(answer)).toMatchObject({ domain: "auth-service", reason });
    expect(errorInfoOf(answer)?.metadata).toEqual({ ...metadata?.(), request_id: requestId });
    expect(badFieldsOf(answer)).toEqual(fields ?? []);
    expect(answer.details).toHaveLength(fields ? 2 : 1);
    // What people read names the fields too.
    for (const field of fields ?? []) expect(answer.message).toContain(`${field}: `);
  });

  test("a request id is made where none was sent, and answered with what succeeds too", async () => {
    const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
    const { requestId, ...refused } = await send(wire, "GetTenant", { tenantId: unknown }, asRoot());
    expect(requestId).toMatch(uuid);
    expect(errorInfoOf({ requestId, ...refused })?.metadata["request_id"]).toBe(requestId);
    expect(await send(wire, "ListTenants", {}, asRoot())).toMatchObject({
      code: 0,
      requestId: expect.stringMatching(uuid) as string,
    });
    const named = { ...asRoot(), "x-request-id": "order-4711" };
    expect(await send(wire, "ListTenants", {}, named)).toMatchObject({ code: 0, requestId: "order-4711" });
  });

  test("a token's scheme may be written in either case", async () => {
    const headers = { authorization: `bearer ${server.rootToken}` };
    expect(await send(wire, "ListTenants", {}, headers)).toMatchObject({ code: 0 });
  });

  test("what succeeds carries no error", async () => {
    const answer = await send(wire, "ListTenants", {}, asRoot());
    expect(answer).toMatchObject({ code: 0, message: "", details: [] });
    expect(answer.text).not.toContain("grpc-status-details-bin");
  });
});

test.each(REFUSALS)(
  "all wires carry the same details of $reason by $rpc",
  async ({ rpc, request, headers = asRoot }) => {
    const sent = { ...headers(), "x-request-id": randomUUID() };
    const answers = await Promise.all(WIRES.map((wire) => send(wire, rpc, request(), sent)));
    const seen = answers.map(({ code, message, details }) => ({
      code,
      message,
      details: details.map(({ typeUrl, value }) => ({ typeUrl, value: Buffer.from(value).toString("hex") })),
    }));
    expect(seen[1]).toEqual(seen[0]);
    expect(seen[2]).toEqual(seen[0]);
  },
);

test.each(rpcs)(
  "$name answers no error whose reason, code or domain the table does not have",
  async ({ name, method }) => {
    for (const headers of [{}, asRoot(), bearer(tenantsOwn.token)]) {
      for (const request of [...sampleMessages(method.input), create(method.input)]) {
        const answer = await send("grpc", name, request, headers);
        if (answer.code === 0) continue;
        const info = errorInfoOf(answer);
        expect(info?.domain).toBe("auth-service");
        expect(REASONS[info?.reason as Reason].code).toBe(answer.code);
        expect(badFieldsOf(answer).length > 0).toBe(answer.code === BAD_REQUEST);
      }
    }
  },
);

test.each([
  ["ListAuditEvents", "after", { seconds: 0n, nanos: -1 }],
  ["ListAuditEvents", "before", { seconds: 0n, nanos: 1_000_000_000 }],
  ["RotateServiceSecret", "overlap", { seconds: 1n, nanos: -2_147_483_648 }],
  ["RotateServiceSecret", "overlap", { seconds: 1n, nanos: -1 }],
  ["AuthenticateService", "ttl", { seconds: 1n, nanos: 1_000_000_000 }],
])("%s refuses %s whose nanoseconds no clock has", async (rpc, field, time) => {
  const request = { serviceId: unknown, key: "root", secret: "x", [field]: time };
  for (const wire of ["grpc", "connect binary"] as const) {
    expect(badFieldsOf(await send(wire, rpc, request, asRoot()))).toEqual([field]);
  }
});

test("ImportUsers names each row whose time no clock has, beside what breaks a rule", async () => {
  const email = "a@example.com";
  const row = (nanos: number) => ({ email, createTime: { seconds: 0n, nanos } });
  const users = [row(0), { email }, row(-1), row(999_999_999), row(1_000_000_000), { email, displayName: "\0" }];
  for (const wire of ["grpc", "connect binary"] as const) {
    const answer = await send(wire, "ImportUsers", { tenantId: unknown, users }, asRoot());
    expect(badFieldsOf(answer).toSorted()).toEqual([
      "users[2].create_time",
      "users[4].create_time",
      "users[5].display_name",
    ]);
  }
});
