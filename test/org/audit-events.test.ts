import { randomUUID } from "node:crypto";
import { type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import type { AuditEvent, ListAuditEventsRequest } from "../../src/gen/org/v1/org_pb.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, startService, transports } from "../support/service.ts";

type Filter = Partial<Omit<ListAuditEventsRequest, "$typeName">>;

const list = async ({ org }: Pick<TestService, "org">, filter: Filter): Promise<readonly AuditEvent[]> =>
  (await org.listAuditEvents({ pageSize: 1_000, ...filter })).events;

const count = async ({ pool }: TestService) =>
  (await pool.one(sql.unsafe`SELECT count(*)::int4 AS events FROM audit_events`)) as { events: number };

// 14 November 2023, with microseconds that milliseconds would lose.
const AT_US = 1_700_000_000_123_456n;
const at = (us: bigint, nanos = 0): Timestamp =>
  ({ seconds: us / 1_000_000n, nanos: Number(us % 1_000_000n) * 1_000 + nanos }) as Timestamp;

/** Events in one tenant, of two users, kinds, things and actions, at one microsecond, the one before and the one after. */
const plantEvents = async (server: TestService) => {
  const tenantId = await server.addTenant();
  const [ann, bob, thing, other] = [randomUUID(), randomUUID(), randomUUID(), randomUUID()];
  for (const userId of [ann, bob]) {
    await server.pool.query(sql.unsafe`
      INSERT INTO users (user_id, tenant_id, user_state_code) VALUES (${userId}::uuid, ${tenantId}::uuid, 'active')`);
  }
  const planted: { id: string; user: string | null; action: string; kind: string; entity: string; us: bigint }[] = [];
  for (const user of [ann, bob, null])
    for (const action of ["x.one", "x.two"])
      for (const [kind, entity] of [
        ["tenant", thing],
        ["service", other],
      ] as const)
        for (const us of [AT_US - 1n, AT_US, AT_US + 1n])
          planted.push({ id: randomUUID(), user, action, kind, entity, us });
  for (const { id, user, action, kind, entity, us } of planted) {
    await server.pool.query(sql.unsafe`
      INSERT INTO audit_events (audit_id, tenant_id, actor_user_id, action_key, entity_kind_code, entity_id, occurred_utc)
      VALUES (${id}::uuid, ${tenantId}::uuid, ${user}::uuid, ${action}, ${kind}, ${entity}::uuid,
        'epoch'::timestamptz + ${String(us)}::bigint * interval '1 microsecond')`);
  }
  const newestFirst = planted.sort((a, b) => Number(b.us - a.us) || (a.id < b.id ? 1 : -1));
  return { tenantId, ann, thing, planted: newestFirst };
};

describe.each(transports)("%s", (transport) => {
  test("every filter holds, alone and with any other", async () => {
    const server = await startService(transport);
    const { tenantId, ann, thing, planted } = await plantEvents(server);
    type Planted = (typeof planted)[number];
    const filters: readonly (readonly [Filter, (event: Planted) => boolean])[] = [
      [{ actorUserId: ann.toUpperCase() }, ({ user }) => user === ann],
      [{ action: "x.one" }, ({ action }) => action === "x.one"],
      [{ entityKind: "tenant" }, ({ kind }) => kind === "tenant"],
      [{ entityId: thing }, ({ entity }) => entity === thing],
      [{ after: at(AT_US) }, ({ us }) => us >= AT_US],
      [{ before: at(AT_US + 1n) }, ({ us }) => us <= AT_US],
    ];
    for (let chosen = 0; chosen < 2 ** filters.length; chosen++) {
      const some = filters.filter((_, bit) => chosen & (1 << bit));
      const filter = Object.assign({ tenantId, before: at(AT_US + 2n) }, ...some.map(([one]) => one)) as Filter;
      const expected = planted.filter((event) => some.every(([, holds]) => holds(event)));
      expect((await list(server, filter)).map(({ auditId }) => auditId)).toEqual(expected.map(({ id }) => id));
    }
  });

  test("after includes its microsecond and before does not; nanoseconds count to the next", async () => {
    const server = await startService(transport);
    const { tenantId, planted } = await plantEvents(server);
    const found = async (filter: Filter) =>
      new Set((await list(server, { tenantId, action: "x.one", ...filter })).map((e) => e.auditId));
    const since = (us: bigint) =>
      new Set(planted.filter((e) => e.action === "x.one" && e.us >= us).map(({ id }) => id));
    const until = (us: bigint) => new Set(planted.filter((e) => e.action === "x.one" && e.us < us).map(({ id }) => id));
    expect(await found({ after: at(AT_US) })).toEqual(since(AT_US));
    expect(await found({ after: at(AT_US, 1) })).toEqual(since(AT_US + 1n));
    expect(await found({ before: at(AT_US) })).toEqual(until(AT_US));
    expect(await found({ before: at(AT_US, 1) })).toEqual(until(AT_US + 1n));
    expect(await found({ after: at(AT_US), before: at(AT_US) })).toEqual(new Set());
    expect(await found({ after: at(AT_US + 1n), before: at(AT_US) })).toEqual(new Set());
    const [first, last] = [
      { seconds: -62_135_596_800n, nanos: 0 },
      { seconds: 253_402_300_799n, nanos: 999_999_999 },
    ];
    expect(await found({ after: first as Timestamp, before: last as Timestamp })).toEqual(since(0n));
  });

  test("a payload that was loaded may be any JSON, and its numbers are told as near as a Struct's come", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const payloads = [
      `{"n": [1e400, {"m": -1e400}], "__proto__": {"x": 1}}`,
      "1e400",
      "[null, true]",
      `"text"`,
      "null",
    ];
    for (const [index, payload] of payloads.entries()) {
      await server.pool.query(sql.unsafe`
        INSERT INTO audit_events (audit_id, tenant_id, action_key, entity_kind_code, payload_json, occurred_utc)
        VALUES (${randomUUID()}::uuid, ${tenantId}::uuid, 'x.y', 'user', ${payload}::jsonb,
          now() - ${index}::int * interval '1 second')`);
    }
    const most = Number.MAX_VALUE;
    const [first, ...others] = (await list(server, { tenantId, action: "x.y" })).map(({ payload }) => payload);
    expect(JSON.stringify(first)).toBe(
      JSON.stringify(JSON.parse(`{"n": [${most}, {"m": ${-most}}], "__proto__": {"x": 1}}`)),
    );
    expect(others).toEqual([{ value: most }, { value: [null, true] }, { value: "text" }, {}]);
  });

  test.each([
    ["objects", '{"a":', "}"],
    ["lists", "[", "]"],
  ])("a payload of %s in each other, however many, can be decoded", async (_what, open, close) => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const depth = 5_000;
    const payload = `${open.repeat(depth)}1${close.repeat(depth)}`;
    await server.pool.query(sql.unsafe`
      INSERT INTO audit_events (audit_id, tenant_id, action_key, entity_kind_code, payload_json)
      VALUES (${randomUUID()}::uuid, ${tenantId}::uuid, 'x.y', 'user', ${payload}::jsonb)`);
    const [event] = await list(server, { tenantId, action: "x.y" });
    expect(JSON.stringify(event?.payload)).toContain(`${open.repeat(30)}"…"${close.repeat(30)}`);
  });

  test("an event's time is told to the microsecond, and has its place in the order", async () => {
    const server = await startService(transport);
    const { tenantId, planted } = await plantEvents(server);
    const events = await list(server, { tenantId, before: at(AT_US + 2n) });
    expect(events.map(({ occurTime }) => ({ ...occurTime! }))).toMatchObject(planted.map(({ us }) => at(us)));
  });

  test("a filter outside its bounds names its field", async () => {
    const { org } = await startService(transport);
    const fieldsOf = async (filter: Filter) =>
      (await expectRefusal(org.listAuditEvents(filter), "INVALID_REQUEST")).fields;
    expect(await fieldsOf({ action: "" })).toEqual(["action"]);
    expect(await fieldsOf({ entityKind: "x".repeat(129) })).toEqual(["entity_kind"]);
    expect(await fieldsOf({ entityId: "x", tenantId: "y", actorUserId: "z" })).toEqual([
      "tenant_id",
      "actor_user_id",
      "entity_id",
    ]);
    expect(await fieldsOf({ pageToken: "x" })).toEqual(["page_token"]);
  });

  test("a tenant's service names its tenant, and sees nothing of other tenants and of none", async () => {
    const server = await startService(transport);
    const [tenantId, otherId] = [await server.addTenant(), await server.addTenant()];
    await server.addService([]);
    const { org } = await server.addService(["org.audit.read"], tenantId);
    const events = await list({ org }, { tenantId });
    expect(events.map(({ action }) => action)).toEqual(["service.register", "org.tenant.create"]);
    expect(new Set(events.map((event) => event.tenantId))).toEqual(new Set([tenantId]));
    expect(await list({ org }, { tenantId, entityId: otherId })).toEqual([]);
    for (const filter of [{}, { tenantId: otherId }, { entityId: tenantId }, { action: "service.register" }]) {
      await expectRefusal(org.listAuditEvents(filter), "TENANT_MISMATCH");
    }
  });

  test("a service without tenant reads the events of all tenants and of none", async () => {
    const server = await startService(transport);
    const [tenantId, otherId] = [await server.addTenant(), await server.addTenant()];
    const { serviceId } = await server.addService([]);
    const { org } = await server.addService(["org.audit.read"]);
    const events = await list({ org }, { after: timestampFromMs(Date.now() - 60_000) });
    expect(events.map(({ entityId }) => entityId)).toEqual(expect.arrayContaining([tenantId, otherId, serviceId]));
    const ofNone = events.find(({ entityId }) => entityId === serviceId);
    expect(ofNone?.tenantId).toBeUndefined();
    expect((await list({ org }, { tenantId })).map((event) => event.tenantId)).toEqual([tenantId]);
  });

  test("an event says which service called, about what, when, and under which request id", async () => {
    const server = await startService(transport);
    const { serviceId, token } = await server.addService(["org.tenant.write"]);
    const { org } = server.as(token, { "x-request-id": "order-4711/a" });
    const { tenant } = await org.createTenant({ label: "Acme" });
    const [event] = await list(server, { entityId: tenant!.tenantId });
    expect(event).toMatchObject({
      tenantId: tenant!.tenantId,
      actorServiceId: serviceId,
      action: "org.tenant.create",
      entityKind: "tenant",
      entityId: tenant!.tenantId,
      payload: { request_id: "order-4711/a" },
    });
    expect(event!.actorUserId).toBeUndefined();
    expect(event!.auditId).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    expect(event!.occurTime!.seconds - tenant!.createTime!.seconds).toBeLessThanOrEqual(5n);
  });

  test.each(["x".repeat(129), ""])("a request id %j is replaced by one of ours", async (sent) => {
    const server = await startService(transport);
    const headers = { "x-request-id": sent };
    const { tenant } = await server.as(server.rootToken, headers).org.createTenant({ label: "Acme" });
    const [event] = await list(server, { entityId: tenant!.tenantId });
    expect(event!.payload?.["request_id"]).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  });

  test("a refused mutation leaves no event", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant("Acme");
    const { serviceId } = await server.addService(["*"]);
    const narrow = await server.addService(["service.write"]);
    const { events } = await count(server);
    await expectRefusal(server.org.createTenant({ tenantId, label: "Other" }), "TENANT_ID_TAKEN");
    await expectRefusal(server.org.suspendTenant({ tenantId: randomUUID() }), "TENANT_NOT_FOUND");
    await expectRefusal(
      server.org.updateTenant({ tenantId, label: "", updateMask: { paths: ["label"] } }),
      "INVALID_REQUEST",
    );
    await expectRefusal(narrow.services.disableService({ serviceId }), "PERMISSION_ESCALATION");
    await expectRefusal(narrow.services.rotateServiceSecret({ serviceId }), "PERMISSION_ESCALATION");
    expect(await count(server)).toEqual({ events });
  });
});
