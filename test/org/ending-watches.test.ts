import { randomBytes, randomUUID } from "node:crypto";
import { EmptySchema } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { sql } from "slonik";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { createLog } from "../../src/log.ts";
import { Call } from "../../src/rpc/call.ts";
import { refusal } from "../../src/rpc/refusal.ts";
import { createStreams } from "../../src/rpc/streams.ts";
import { loggedLines } from "../support/logged-lines.ts";
import { metric } from "../support/metrics.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import {
  type Clients,
  type TestService,
  type TransportName,
  clientsOf,
  launchService,
  speaking,
  transports,
} from "../support/service.ts";
import { beginWatch } from "../support/watches.ts";

const { log, of: logged } = loggedLines();

let launched: TestService;

beforeAll(async () => {
  launched = await launchService("grpc", { log, env: { CALL_TIMEOUT: "1500ms" } });
});
afterAll(() => launched.stop());

const speakingOver = (transport: TransportName) => speaking(clientsOf(transport, launched), launched);

const change = ({ org }: Pick<Clients, "org">, tenantId: string) =>
  org.updateTenant({ tenantId, label: randomUUID(), updateMask: { paths: ["label"] } });

/** A tenant with an event to begin after, and one that comes then. */
const plant = async (server: TestService) => {
  const tenantId = await server.addTenant();
  await change(server, tenantId);
  const { events } = await server.org.listAuditEvents({ tenantId });
  return { tenantId, first: events.at(-1)!.auditId };
};

/** Connections of the pool that are in use; the moment of another's use passes. */
const inUse = (server: TestService) => metric(server, "database_pool_connections_in_use");

const CANCELED =
  'grpc_server_handled_total{grpc_type="server_stream",grpc_service="org.v1.OrgService",grpc_method="WatchAuditEvents",grpc_code="Canceled"}';

describe.each(transports)("%s", (transport) => {
  test("a watch outlives CALL_TIMEOUT, and ends when its caller cancels it, with one line and one count", async () => {
    const server = speakingOver(transport);
    const { tenantId, first } = await plant(server);
    const requestId = randomUUID();
    const controller = new AbortController();
    const client = server.as(server.rootToken, { "x-request-id": requestId });
    const before = (await metric(server, CANCELED)) ?? 0;
    let header: string | null = null;
    const { heard, ended } = await beginWatch(
      client,
      { tenantId, afterAuditId: first },
      {
        signal: controller.signal,
        onHeader: (headers) => (header = headers.get("x-request-id")),
      },
    );
    expect(header).toBe(requestId);
    const started = performance.now();
    await expect.poll(() => performance.now() - started, { timeout: 3_000 }).toBeGreaterThan(1_600);
    await change(server, tenantId);
    await expect.poll(() => heard.length).toBe(2);
    expect(logged(requestId)).toEqual([]);
    controller.abort();
    expect((await refused(ended)).error.code).toBe(Code.Canceled);
    await expect.poll(() => logged(requestId)).toMatchObject([{ code: "Canceled", messages: 2, level: "info" }]);
    expect(await metric(server, CANCELED)).toBe(before + 1);
    await expect.poll(() => inUse(server)).toBe(0);
  });

  test("a watch ends at its caller's deadline", async () => {
    const server = speakingOver(transport);
    const { tenantId, first } = await plant(server);
    const requestId = randomUUID();
    const client = server.as(server.rootToken, { "x-request-id": requestId });
    const { ended } = await beginWatch(client, { tenantId, afterAuditId: first }, { timeoutMs: 700 });
    expect((await refused(ended)).error.code).toBe(Code.DeadlineExceeded);
    await expect.poll(() => logged(requestId).length).toBe(1);
  });

  test("a watch ends within 2 s of what would not let it begin", async () => {
    const server = speakingOver(transport);
    const ends = [
      [
        "CALLER_TOKEN_INVALID",
        (own) => own.services.revokeServiceSession({ selector: { case: "serviceToken", value: own.token } }),
      ],
      ["CALLER_TOKEN_INVALID", (own) => server.services.disableService({ serviceId: own.serviceId })],
      [
        "PERMISSION_MISSING",
        (own) =>
          server.services.revokeServicePermissions({ serviceId: own.serviceId, permissions: ["org.audit.read"] }),
      ],
      ["TENANT_SUSPENDED", (own) => server.org.suspendTenant({ tenantId: own.tenantId })],
    ] as const satisfies readonly (readonly [
      string,
      (own: { tenantId: string } & Awaited<ReturnType<TestService["addService"]>>) => Promise<unknown>,
    ])[];
    await Promise.all(
      ends.map(async ([reason, end]) => {
        const { tenantId, first } = await plant(server);
        const own = await server.addService(["org.audit.read"], tenantId);
        const { ended } = await beginWatch(own, { tenantId, afterAuditId: first });
        const started = performance.now();
        await end({ ...own, tenantId });
        await expectRefusal(ended, reason);
        expect(performance.now() - started).toBeLessThan(4_000);
      }),
    );
    await expect.poll(() => inUse(server)).toBe(0);
  });

  test("what another replica revokes ends a watch here too", async () => {
    const server = speakingOver(transport);
    const other = await launchService(transport, { databaseUrl: server.databaseUrl });
    const { tenantId, first } = await plant(server);
    const own = await server.addService(["org.audit.read"], tenantId);
    const { ended } = await beginWatch(own, { tenantId, afterAuditId: first });
    const started = performance.now();
    await other.as(server.rootToken).services.disableService({ serviceId: own.serviceId });
    await expectRefusal(ended, "CALLER_TOKEN_INVALID");
    expect(performance.now() - started).toBeLessThan(4_000);
    await other.stop();
  });

  test("shutdown ends watches at once, by a code that means resume", async () => {
    const requestId = randomUUID();
    const server = await launchService(transport, { log });
    const { tenantId, first } = await plant(server);
    const { ended } = await beginWatch(server.as(server.rootToken, { "x-request-id": requestId }), {
      tenantId,
      afterAuditId: first,
    });
    const started = performance.now();
    const [{ metadata }] = await Promise.all([expectRefusal(ended, "STREAM_ENDED"), server.stop()]);
    expect(performance.now() - started).toBeLessThan(4_000);
    expect(metadata).toMatchObject({ request_id: requestId });
    expect(logged(requestId)).toMatchObject([{ code: "Unavailable", level: "info" }]);
  });

  test("a watcher that reads nothing makes the server fetch nothing for it, and holds nobody up", async () => {
    const server = speakingOver(transport);
    const { tenantId, first } = await plant(server);
    // 16 MB that compression does not make less, of which connections hold a few.
    const count = 1_000;
    const payload = randomBytes(12_000).toString("base64");
    await server.pool.query(sql.unsafe`
      WITH event AS (
        INSERT INTO audit_events (audit_id, tenant_id, action_key, entity_kind_code, payload_json)
        SELECT gen_random_uuid(), ${tenantId}::uuid, 'x.y', 'tenant', jsonb_build_object('x', ${payload}::text)
        FROM generate_series(1, ${count}::int4)
        RETURNING audit_id
      )
      INSERT INTO audit_pending (audit_id) SELECT e.audit_id FROM event e`);
    const requestId = randomUUID();
    const controller = new AbortController();
    const slow = server
      .as(server.rootToken, { "x-request-id": requestId })
      .org.watchAuditEvents({ tenantId, afterAuditId: first }, { signal: controller.signal })
      [Symbol.asyncIterator]();
    expect((await slow.next()).done).toBe(false);

    const fast = new AbortController();
    const events = server.org.watchAuditEvents({ tenantId, afterAuditId: first }, { signal: fast.signal });
    const reader = events[Symbol.asyncIterator]();
    for (let heard = 0; heard < count; heard++) expect((await reader.next()).done).toBe(false);
    fast.abort();
    expect(logged(requestId)).toEqual([]);
    expect(await inUse(server)).toBeLessThan(3);
    controller.abort();
    await slow.return?.();
    await expect.poll(() => logged(requestId)).toMatchObject([{ code: "Canceled" }]);
    expect(logged(requestId)[0]!.messages).toBeLessThan(count / 2);
    await expect.poll(() => inUse(server)).toBe(0);
  });
});

test("a watch that comes when all are being ended does not begin", async () => {
  const streams = createStreams(createLog("silent"));
  streams.endAll();
  const call = new Call("late", Infinity);
  const opened = await streams.open({
    method: { name: "late" } as never,
    call,
    exchange: { encode: (message) => message },
    begin: () => Promise.reject(new Error("it has begun")),
    verify: () => Promise.resolve(),
    record: () => undefined,
  });
  expect(opened).toMatchObject({ failure: { reason: "STREAM_ENDED" } });
});

test("a watch that is refused, and one that has ended, keeps no call", async () => {
  let kept = 0;
  const open = (begin: () => Promise<unknown>) => {
    kept++;
    return createStreams(createLog("silent")).open({
      method: { name: "over" } as never,
      call: new Call("over", Infinity, () => kept--),
      exchange: { encode: (message) => message },
      begin: begin as never,
      verify: () => Promise.resolve(),
      record: () => undefined,
    });
  };
  expect(await open(() => Promise.reject(refusal("PERMISSION_MISSING")))).toHaveProperty("failure");
  expect(kept).toBe(0);
  const opened = await open(() => Promise.resolve(ReadableStream.from([])));
  if ("failure" in opened) throw new Error(opened.failure.reason);
  expect(kept).toBe(1);
  expect(await opened.messages.next()).toEqual({ done: true, value: undefined });
  expect(kept).toBe(0);
});

test("nobody is verified for a watch that has ended", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  onTestFinished(() => {
    vi.useRealTimers();
  });
  const end = Promise.withResolvers<IteratorReturnResult<undefined>>();
  const next = () => end.promise;
  let verified = 0;
  const opened = await createStreams(createLog("silent")).open({
    method: { name: "ended" } as never,
    call: new Call("ended", Infinity),
    exchange: { encode: (message) => message },
    begin: () => Promise.resolve({ next, [Symbol.asyncIterator]: () => ({ next }) } as never),
    verify() {
      verified++;
      return Promise.resolve();
    },
    record: () => undefined,
  });
  if ("failure" in opened) throw new Error(opened.failure.reason);
  const ended = opened.messages.next();
  await vi.advanceTimersByTimeAsync(1_000);
  expect(verified).toBe(1);
  end.resolve({ done: true, value: undefined });
  await ended;
  await vi.advanceTimersByTimeAsync(5_000);
  expect(verified).toBe(1);
});

test("a caller who reads nothing is not verified again once he may not read any more", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  onTestFinished(() => {
    vi.useRealTimers();
  });
  let verified = 0;
  const opened = await createStreams(createLog("silent")).open({
    method: { name: "unread", desc: { output: EmptySchema } } as never,
    call: new Call("unread", Infinity),
    exchange: { encode: (message) => message },
    begin: () => Promise.resolve(ReadableStream.from([{}]) as never),
    verify() {
      verified++;
      return Promise.reject(refusal("CALLER_TOKEN_INVALID"));
    },
    record: () => undefined,
  });
  if ("failure" in opened) throw new Error(opened.failure.reason);
  expect(await opened.messages.next()).toMatchObject({ done: false });
  await vi.advanceTimersByTimeAsync(5_000);
  expect(verified).toBe(1);
});

test("grpc: the connection's age ends a watch, by a code that means resume", async () => {
  const server = await launchService("grpc", {
    env: { GRPC_CONNECTION_AGE: "1s", GRPC_CONNECTION_AGE_GRACE: "20s" },
  });
  const { tenantId, first } = await plant(server);
  const { heard, ended } = await beginWatch(server, { tenantId, afterAuditId: first });
  const started = performance.now();
  await expectRefusal(ended, "STREAM_ENDED");
  expect(performance.now() - started).toBeLessThan(5_000);
  await change(server, tenantId);
  const again = await beginWatch(server, { tenantId, afterAuditId: heard.at(-1)!.auditId });
  expect(again.heard).toHaveLength(1);
  await Promise.all([expectRefusal(again.ended, "STREAM_ENDED"), server.stop()]);
});
