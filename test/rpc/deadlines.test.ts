import { gzipSync } from "node:zlib";
import { toBinary } from "@bufbuild/protobuf";
import { Code, type Interceptor, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { Client, Metadata, type ServiceError, credentials, status } from "@grpc/grpc-js";
import { sql } from "slonik";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { GetTenantRequestSchema, OrgService } from "../../src/gen/org/v1/org_pb.ts";
import { holdLock } from "../support/held-up.ts";
import { loggedLines } from "../support/logged-lines.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { type TestService, type TransportName, launchService, transports } from "../support/service.ts";

const logged = loggedLines();

const ORIGIN = "https://app.example.com";
const services = new Map<TransportName, TestService>();
let service: TestService;

beforeAll(async () => {
  const env = { CALL_TIMEOUT: "800ms", MESSAGE_MAX_BYTES: "65536", CORS_ORIGINS: ORIGIN };
  for (const transport of transports) services.set(transport, await launchService(transport, { env, log: logged.log }));
  service = services.get("grpc")!;
});
afterAll(() => Promise.all([...services.values()].map((each) => each.stop())));

/** Locks a tenant, so that a call which writes it is held. */
const lockTenant = ({ databaseUrl }: TestService, tenantId: string) =>
  holdLock(databaseUrl, sql.unsafe`SELECT 1 FROM tenants t WHERE t.tenant_id = ${tenantId}::uuid FOR NO KEY UPDATE`);

test.each(transports)(
  "%s: a call that is cancelled while it waits for a lock ends, is logged, and writes nothing",
  async (name) => {
    const each = services.get(name)!;
    const tenantId = await each.addTenant("Before");
    const lock = await lockTenant(each, tenantId);
    const controller = new AbortController();
    const requestId = `cancelled-${name}`;
    const { org } = each.as(each.rootToken, { "x-request-id": requestId });
    const call = refused(
      org.updateTenant(
        { tenantId, label: "After", updateMask: { paths: ["label"] } },
        { signal: controller.signal, timeoutMs: 20_000 },
      ),
    );
    await expect.poll(lock.waiters).toBe(1);
    controller.abort();
    expect((await call).error.code).toBe(Code.Canceled);
    // The lock is still held: the wait of the handler ended, not the statement's.
    await expect.poll(() => logged.of(requestId)).toMatchObject([{ code: "Canceled" }]);
    await lock.release();
    await expect.poll(lockFree(each, tenantId)).toBe(true);
    expect((await each.org.getTenant({ tenantId })).tenant?.label).toBe("Before");
  },
);

/** Whether nobody holds the tenant any more. */
const lockFree =
  ({ pool }: TestService, tenantId: string) =>
  async () =>
    await pool.exists(
      sql.unsafe`SELECT 1 FROM tenants t WHERE t.tenant_id = ${tenantId}::uuid FOR NO KEY UPDATE SKIP LOCKED`,
    );

test.each(transports)("%s: without a deadline of the caller CALL_TIMEOUT ends the call", async (name) => {
  const each = services.get(name)!;
  const requestId = `without a deadline, ${name}`;
  const { org } = each.as(each.rootToken, { "x-request-id": requestId });
  const tenantId = await each.addTenant();
  const lock = await lockTenant(each, tenantId);
  const started = performance.now();
  await expectRefusal(org.suspendTenant({ tenantId }), "DEADLINE");
  await expect.poll(() => logged.of(requestId)).toHaveLength(1);
  const [line] = logged.of(requestId);
  for (const ms of [performance.now() - started, line?.ms]) {
    expect(ms).toBeGreaterThan(700);
    expect(ms).toBeLessThan(2_500);
  }
  // SET LOCAL has cut the statement off: it does not wait for the lock any more.
  await expect.poll(lock.waiters, { timeout: 2_000 }).toBe(0);
  await lock.release();
});

test("why the database was out of reach stands in the log alone", async () => {
  const hasty = await launchService("grpc", { env: { DATABASE_STATEMENT_TIMEOUT: "100ms" }, log: logged.log });
  onTestFinished(() => hasty.stop());
  const tenantId = await hasty.addTenant();
  await lockTenant(hasty, tenantId);
  const { org } = hasty.as(hasty.rootToken, { "x-request-id": "out of reach" });
  await expectRefusal(org.suspendTenant({ tenantId }), "DATABASE_UNAVAILABLE");
  expect(logged.of("out of reach")).toMatchObject([
    { reason: "DATABASE_UNAVAILABLE", err: { message: expect.stringContaining("statement timeout") as string } },
  ]);
});

test.each(transports)("%s: a caller's longer deadline is his own", async (name) => {
  const each = services.get(name)!;
  const tenantId = await each.addTenant();
  const lock = await lockTenant(each, tenantId);
  const call = each.org.suspendTenant({ tenantId }, { timeoutMs: 10_000 });
  const started = performance.now();
  await expect.poll(() => performance.now() - started, { timeout: 2_000 }).toBeGreaterThan(1_000);
  await lock.release();
  expect((await call).tenant?.tenantId).toBe(tenantId);
});

const noTenant = "0190a000-0000-7000-8000-000000000000";
const sentIds: [string, string, boolean][] = [
  ["a usual one", "req-1.a/b", true],
  ["one of 128 characters", "x".repeat(128), true],
  ["one of 129 characters", "x".repeat(129), false],
  ["one with spaces", "order 47 11", true],
];

test.each(transports.flatMap((name) => sentIds.map(([what, id, kept]) => [name, what, id, kept] as const)))(
  "%s: x-request-id, %s, comes back with answers and errors",
  async (name, _what, id, kept) => {
    const each = services.get(name)!;
    const { org } = each.as(each.rootToken, { "x-request-id": id });
    let header: string | null = null;
    await org.listTenants({}, { onHeader: (headers) => (header = headers.get("x-request-id")) });
    const { error, metadata } = await refused(org.getTenant({ tenantId: noTenant }));
    const fromError = error.metadata.get("x-request-id");
    for (const returned of [header, fromError]) {
      if (kept) expect(returned).toBe(id);
      else expect(returned).toMatch(/^[0-9a-f-]{36}$/);
    }
    expect(metadata["request_id"]).toBe(fromError);
    expect(logged.of(fromError ?? "").map(({ code }) => code)).toContain("NotFound");
  },
);

test.each(transports)("%s: an x-request-id is made where none is sent", async (name) => {
  let header: string | null = null;
  await services.get(name)!.org.listTenants({}, { onHeader: (headers) => (header = headers.get("x-request-id")) });
  expect(header).toMatch(/^[0-9a-f-]{36}$/);
});

test("a stream that is refused at once has it in its header, as one that begins", async () => {
  for (const contentType of ["application/connect+json", "application/grpc-web+proto"]) {
    const headers = { "content-type": contentType, "x-request-id": "no caller" };
    const url = `http://127.0.0.1:${service.httpPort}/org.v1.OrgService/WatchAuditEvents`;
    const response = await fetch(url, { method: "POST", headers, body: "" });
    expect(await response.text()).toMatch(/CALLER_TOKEN_INVALID|grpc-status: 16/);
    expect(response.headers.get("x-request-id")).toBe("no caller");
  }
});

const asIs = (bytes: Buffer) => bytes;
const rawGrpc = (path: string, body: Buffer, headers: Readonly<Record<string, string>>, options = {}) => {
  const client = new Client(`127.0.0.1:${service.grpcPort}`, credentials.createInsecure(), options);
  onTestFinished(() => client.close());
  const metadata = new Metadata();
  for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
  return new Promise<number>((resolve) =>
    client.makeUnaryRequest(path, asIs, asIs, body, metadata, (error: ServiceError | null) =>
      resolve(error?.code ?? 0),
    ),
  );
};
const GET_TENANT = "/org.v1.OrgService/GetTenant";
const authorized = () => ({ authorization: `Bearer ${service.rootToken}` });
const garbage = Buffer.from([0x0a, 0xff, 0xff]);

test("grpc: a garbage message is INVALID_ARGUMENT to a caller and UNAUTHENTICATED to anybody else", async () => {
  expect(await rawGrpc(GET_TENANT, garbage, authorized())).toBe(status.INVALID_ARGUMENT);
  expect(await rawGrpc(GET_TENANT, garbage, {})).toBe(status.UNAUTHENTICATED);
  expect(await rawGrpc(GET_TENANT, garbage, { authorization: "Bearer none" })).toBe(status.UNAUTHENTICATED);
});

test("grpc: a message too large is RESOURCE_EXHAUSTED, an unknown method UNIMPLEMENTED", async () => {
  expect(await rawGrpc(GET_TENANT, Buffer.alloc(70_000), authorized())).toBe(status.RESOURCE_EXHAUSTED);
  expect(await rawGrpc("/org.v1.OrgService/Nothing", Buffer.alloc(0), authorized())).toBe(status.UNIMPLEMENTED);
  expect(await rawGrpc("/nobody.v1.NobodyService/Get", Buffer.alloc(0), {})).toBe(status.UNIMPLEMENTED);
});

test("grpc: a request compressed with gzip is read", async () => {
  const tenantId = await service.addTenant();
  const body = Buffer.from(toBinary(GetTenantRequestSchema, { $typeName: "org.v1.GetTenantRequest", tenantId }));
  const gzip = { "grpc.default_compression_algorithm": 2, "grpc.use_local_subchannel_pool": 1 };
  expect(await rawGrpc(GET_TENANT, body, authorized(), gzip)).toBe(status.OK);
});

const post = (path: string, body: string | Buffer, headers: Readonly<Record<string, string>> = {}) =>
  fetch(`http://127.0.0.1:${service.httpPort}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...authorized(), ...headers },
    body,
  });

test("connect: broken JSON, too large a message, an unknown method, gzip", async () => {
  const codeOf = async (response: Response) => [response.status, ((await response.json()) as { code: string }).code];
  expect(await codeOf(await post(GET_TENANT, "{"))).toEqual([400, "invalid_argument"]);
  expect(await codeOf(await post(GET_TENANT, JSON.stringify({ tenantId: "x".repeat(70_000) })))).toEqual([
    429,
    "resource_exhausted",
  ]);
  expect((await post("/org.v1.OrgService/Nothing", "{}")).status).toBe(404);
  const zipped = gzipSync(JSON.stringify({ tenantId: await service.addTenant() }));
  expect((await post(GET_TENANT, zipped, { "content-encoding": "gzip" })).status).toBe(200);
  const bomb = gzipSync(Buffer.alloc(1_000_000, " "));
  expect(await codeOf(await post(GET_TENANT, bomb, { "content-encoding": "gzip" }))).toEqual([
    429,
    "resource_exhausted",
  ]);
});

test("connect: no method is called by GET", async () => {
  const query = `?connect=v1&encoding=json&message=${encodeURIComponent("{}")}`;
  const response = await fetch(`http://127.0.0.1:${service.httpPort}/org.v1.OrgService/ListTenants${query}`, {
    headers: authorized(),
  });
  expect(response.status).toBe(405);
});

test("CORS is for the configured origins alone", async () => {
  const preflight = (origin: string) =>
    fetch(`http://127.0.0.1:${service.httpPort}${GET_TENANT}`, {
      method: "OPTIONS",
      headers: {
        origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,connect-protocol-version",
      },
    });
  const own = await preflight(ORIGIN);
  expect(own.headers.get("access-control-allow-origin")).toBe(ORIGIN);
  const allowed = own.headers.get("access-control-allow-headers")?.toLowerCase().split(",");
  expect(allowed).toEqual(expect.arrayContaining(["authorization", "x-actor-token", "x-request-id", "content-type"]));
  expect((await preflight("https://evil.example.com")).headers.get("access-control-allow-origin")).toBeNull();
  const exposed = await post("/org.v1.OrgService/ListTenants", "{}", { origin: ORIGIN });
  expect(exposed.headers.get("access-control-expose-headers")?.toLowerCase()).toContain("x-request-id");
});

test("the HTTP port speaks gRPC-Web, binary and JSON, and gRPC's port HTTP/2 alone", async () => {
  const authorize: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${service.rootToken}`);
    return next(request);
  };
  const baseUrl = `http://127.0.0.1:${service.httpPort}`;
  const options = { baseUrl, httpVersion: "1.1" as const, interceptors: [authorize] };
  for (const transport of [
    createGrpcWebTransport({ ...options, useBinaryFormat: true }),
    createGrpcWebTransport({ ...options, useBinaryFormat: false }),
    createConnectTransport({ ...options, useBinaryFormat: true }),
    createGrpcTransport({ baseUrl: `http://127.0.0.1:${service.grpcPort}`, interceptors: [authorize] }),
  ]) {
    const org = createClient(OrgService, transport);
    expect((await org.listTenants({})).tenants.length).toBeGreaterThan(0);
    await expectRefusal(org.getTenant({ tenantId: noTenant }), "TENANT_NOT_FOUND");
  }
});
