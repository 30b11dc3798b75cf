import { randomUUID } from "node:crypto";
import { type MessageInitShape, create } from "@bufbuild/protobuf";
import fc from "fast-check";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { ListSessionsRequestSchema } from "../../src/gen/auth/v1/auth_pb.ts";
import { ListCapabilitiesRequestSchema, ListTenantsRequestSchema, TenantState } from "../../src/gen/org/v1/org_pb.ts";
import { cutPage, microseconds, readPage } from "../../src/rpc/page.ts";
import { oncePerFile } from "../support/per-file.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { bearer } from "../support/rpcs.ts";
import {
  type Clients,
  type TestService,
  type TransportName,
  clientsOf,
  startService,
  transports,
} from "../support/service.ts";

interface Listed {
  readonly ids: readonly string[];
  readonly nextPageToken: string;
}

/** One list, with a way to put rows behind its back: many at once, with ids of any version and equal times. */
interface List {
  page(pageSize: number, pageToken: string): Promise<Listed>;
  /** The same list with other filters. */
  filtered(pageToken: string): Promise<unknown>;
  insert(count: number): Promise<unknown>;
  /** The ids that the list has now. */
  rows(): Promise<readonly string[]>;
}

/** Whose clients ask for it. */
type ListBy = (clients: Clients) => List;

const ids = async ({ pool }: TestService, query: ReturnType<typeof sql.unsafe>) =>
  (await pool.any(query)).map((row) => (row as { id: string }).id);

const any = (count: number) =>
  sql.fragment`SELECT md5(random()::text || n)::uuid AS id, n FROM generate_series(1, ${count}::int) n`;

const tenants =
  (server: TestService): ListBy =>
  ({ org }) => ({
    async page(pageSize, pageToken) {
      const { tenants: found, nextPageToken } = await org.listTenants({ pageSize, pageToken });
      return { ids: found.map(({ tenantId }) => tenantId), nextPageToken };
    },
    filtered: (pageToken) => org.listTenants({ pageToken, state: TenantState.SUSPENDED }),
    insert: (count) =>
      server.pool.query(sql.unsafe`
      INSERT INTO tenants (tenant_id, tenant_label, tenant_state_code) SELECT r.id, 'Tenant', 'active' FROM (${any(count)}) r`),
    rows: () => ids(server, sql.unsafe`SELECT tenant_id AS id FROM tenants ORDER BY 1`),
  });

const services =
  (server: TestService): ListBy =>
  ({ services: client }) => ({
    async page(pageSize, pageToken) {
      const { services: found, nextPageToken } = await client.listServices({ pageSize, pageToken });
      return { ids: found.map(({ serviceId }) => serviceId), nextPageToken };
    },
    filtered: (pageToken) => client.listServices({ pageToken, tenantId: randomUUID() }),
    insert: (count) =>
      server.pool.query(sql.unsafe`
      INSERT INTO services (svc_id, svc_key, svc_label, svc_state_code)
      SELECT r.id, 'bulk-' || r.id, 'Bulk', CASE WHEN r.n % 2 = 0 THEN 'active' ELSE 'disabled' END FROM (${any(count)}) r`),
    rows: () => ids(server, sql.unsafe`SELECT svc_id AS id FROM services ORDER BY 1`),
  });

const sessions = async (server: TestService, includeEnded: boolean): Promise<ListBy> => {
  const { serviceId } = await server.addService([]);
  return ({ services: client }) => ({
    async page(pageSize, pageToken) {
      const request = { serviceId, includeEnded, pageSize, pageToken };
      const { sessions: found, nextPageToken } = await client.listServiceSessions(request);
      return { ids: found.map(({ sessionId }) => sessionId), nextPageToken };
    },
    filtered: (pageToken) => client.listServiceSessions({ serviceId, includeEnded: !includeEnded, pageToken }),
    // Microseconds apart, many at the same one; every third has ended.
    insert: (count) =>
      server.pool.query(sql.unsafe`
        INSERT INTO service_sessions (svc_session_id, svc_id, token_hash_text, expiry_utc, revoked_utc)
        SELECT r.id, ${serviceId}::uuid, 'x', date_trunc('hour', now()) + interval '2 hours' + (r.n % 7) * interval '1 microsecond',
          CASE WHEN r.n % 3 = 0 THEN now() END
        FROM (${any(count)}) r`),
    rows: () =>
      ids(
        server,
        includeEnded
          ? sql.unsafe`SELECT svc_session_id AS id FROM service_sessions WHERE svc_id = ${serviceId}::uuid ORDER BY 1 DESC`
          : sql.unsafe`SELECT svc_session_id AS id FROM service_sessions WHERE svc_id = ${serviceId}::uuid
              AND revoked_utc IS NULL ORDER BY expiry_utc DESC, 1 DESC`,
      ),
  });
};

/** `rare` is what one event in forty does: fewer than a page's window has. */
const events = async (server: TestService, action?: string): Promise<ListBy> => {
  const tenantId = await server.addTenant();
  const filter = { tenantId, ...(action !== undefined && { action }) };
  return ({ org }) => ({
    async page(pageSize, pageToken) {
      const { events: found, nextPageToken } = await org.listAuditEvents({ ...filter, pageSize, pageToken });
      return { ids: found.map(({ auditId }) => auditId), nextPageToken };
    },
    filtered: (pageToken) => org.listAuditEvents({ ...filter, entityKind: "tenant", pageToken }),
    insert: (count) =>
      server.pool.query(sql.unsafe`
        INSERT INTO audit_events (audit_id, tenant_id, action_key, entity_kind_code, occurred_utc)
        SELECT r.id, ${tenantId}::uuid, CASE WHEN r.n % 40 = 0 THEN 'rare' ELSE 'common' END, 'tenant',
          timestamptz '2026-01-01' + (r.n % 11) * interval '1 microsecond'
        FROM (${any(count)}) r`),
    rows: () =>
      ids(
        server,
        sql.unsafe`SELECT audit_id AS id FROM audit_events WHERE tenant_id = ${tenantId}::uuid
        AND (${action ?? null}::text IS NULL OR action_key = ${action ?? null}::text) ORDER BY occurred_utc DESC, 1 DESC`,
      ),
  });
};

const LISTS: readonly (readonly [string, (server: TestService) => ListBy | Promise<ListBy>, number])[] = [
  ["ListTenants", tenants, 1_100],
  ["ListServices", services, 1_100],
  ["ListServiceSessions", (server) => sessions(server, false), 1_800],
  ["ListServiceSessions with ended", (server) => sessions(server, true), 1_100],
  ["ListAuditEvents", (server) => events(server), 1_100],
  ["ListAuditEvents of a rare action", (server) => events(server, "rare"), 41_000],
];

const fill = oncePerFile(async ([, make, count]: (typeof LISTS)[number]) => {
  const server = await startService("grpc");
  const by = await make(server);
  await by(server).insert(count);
  return { server, by };
});

/** The list as a transport shows it. Its rows are put there once for both. */
const listOf = async (transport: TransportName, entry: (typeof LISTS)[number]): Promise<List> => {
  const { server, by } = await fill(entry);
  return by(clientsOf(transport, server)(bearer(server.rootToken)));
};

describe.each(transports)("%s", (transport) => {
  describe.each(LISTS.map((entry) => [entry[0], entry] as const))("%s", (_, entry) => {
    test("a walk with any page sizes meets each row present throughout once, in order, and later ones at most once", async () => {
      const list = await listOf(transport, entry);
      const sizes = fc.array(fc.integer({ min: 1, max: 1_000 }), { minLength: 1, maxLength: 4 });
      const property = fc.asyncProperty(sizes, fc.integer({ min: 0, max: 30 }), async (pageSizes, added) => {
        const before = await list.rows();
        const met: string[] = [];
        for (let at = 0, pageToken = ""; at === 0 || pageToken !== ""; at++) {
          const size = Math.max(pageSizes[at % pageSizes.length]!, at > 40 ? 500 : 1);
          const page = await list.page(size, pageToken);
          expect(page.ids.length).toBeLessThanOrEqual(size);
          met.push(...page.ids);
          pageToken = page.nextPageToken;
          if (at < 3) await list.insert(added);
        }
        const after = await list.rows();
        const [present, seen] = [new Set(before), new Set(met)];
        expect(seen.size).toBe(met.length);
        expect(met.filter((id) => present.has(id))).toEqual(before);
        expect(met).toEqual(after.filter((id) => seen.has(id)));
      });
      await fc.assert(property, { numRuns: 3 });
    });

    test("0 is 50, above 1,000 is 1,000, and below 0 is refused", async () => {
      const list = await listOf(transport, entry);
      expect((await list.page(1, "")).ids).toHaveLength(1);
      for (const size of [1_000, 1_001, 2 ** 31 - 1])
        expect((await list.page(size, "")).ids.length).toBeLessThanOrEqual(1_000);
      // A page whose filter no index serves may be short.
      if (entry[2] < 2_000) {
        expect((await list.page(0, "")).ids).toHaveLength(50);
        expect((await list.page(1_001, "")).ids).toHaveLength(1_000);
      }
      expect((await expectRefusal(list.page(-1, ""), "INVALID_REQUEST")).fields).toEqual(["page_size"]);
    });

    test("a token is bound to its list and its filters", async () => {
      const list = await listOf(transport, entry);
      const { nextPageToken } = await list.page(7, "");
      expect((await expectRefusal(list.filtered(nextPageToken), "INVALID_REQUEST")).fields).toEqual(["page_token"]);
      for (const other of LISTS.filter(([name]) => name !== entry[0])) {
        await expectRefusal((await listOf(transport, other)).page(7, nextPageToken), "INVALID_REQUEST");
      }
      // Sizes may change from page to page.
      expect((await list.page(3, nextPageToken)).ids).toHaveLength(3);
    });

    test("a token that was tampered with is refused, or starts the list elsewhere", async () => {
      const list = await listOf(transport, entry);
      const { nextPageToken } = await list.page(7, "");
      const [filters, key] = JSON.parse(Buffer.from(nextPageToken, "base64url").toString()) as [string, unknown];
      const value = fc.oneof(
        fc.jsonValue(),
        fc.constantFrom(key, filters, randomUUID(), "0", "-62135596800000000", "9".repeat(18)),
      );
      const forged = fc
        .oneof(
          fc.tuple(fc.constant(filters), fc.oneof(value, fc.array(value, { maxLength: 3 }))),
          fc.array(value),
          value,
        )
        .map((json) => Buffer.from(JSON.stringify(json)).toString("base64url"));
      const mutated = fc
        .tuple(fc.nat(nextPageToken.length - 1), fc.string({ maxLength: 3 }), fc.nat(3))
        .map(([at, text, cut]) => nextPageToken.slice(0, at) + text + nextPageToken.slice(at + cut));
      const property = fc.asyncProperty(fc.oneof(forged, mutated, fc.string({ unit: "binary" })), async (pageToken) => {
        const answer = await list
          .page(2, pageToken)
          .catch(async (error: unknown) => (await refused(Promise.reject(error as Error))).reason);
        expect(typeof answer === "string" ? answer : "answered").toMatch(/^(answered|INVALID_REQUEST)$/);
      });
      await fc.assert(property, { numRuns: 60 });
    });
  });
});

test("a token carries its key to the next page, to the microsecond, and not to other filters", () => {
  const key = z.tuple([microseconds, z.guid()]);
  const anyUuid = fc.uint8Array({ minLength: 16, maxLength: 16 }).map((bytes) => {
    const hex = Buffer.from(bytes).toString("hex");
    return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
  });
  const time = fc.bigInt(-62_135_596_800_000_000n, 253_402_300_799_999_999n).map(String);
  const request = (state: TenantState | undefined, pageToken: string) =>
    create(ListTenantsRequestSchema, { pageToken, ...(state && { state }) });
  const states = fc.constantFrom(undefined, TenantState.ACTIVE, TenantState.SUSPENDED);
  const property = fc.property(fc.tuple(time, anyUuid), states, states, (last, state, other) => {
    const token = readPage(ListTenantsRequestSchema, request(state, ""), key).tokenAfter(last);
    const read = () => readPage(ListTenantsRequestSchema, request(other, token), key).after;
    if (state === other) expect(read()).toEqual(last);
    else expect(read).toThrow("INVALID_REQUEST");
  });
  fc.assert(property);
});

test("a page names a next one exactly where there is a row for it", () => {
  const sizes = fc.integer({ min: 1, max: 20 });
  const property = fc.property(sizes, fc.nat(21), (pageSize, count) => {
    const page = readPage(ListTenantsRequestSchema, create(ListTenantsRequestSchema, { pageSize }), z.number());
    const rows = Array.from({ length: Math.min(count, page.size + 1) }, (_, n) => n);
    const { rows: kept, nextPageToken } = cutPage(page, rows, (n) => n);
    expect(kept).toEqual(rows.slice(0, pageSize));
    expect(nextPageToken).toBe(rows.length > pageSize ? page.tokenAfter(pageSize - 1) : "");
  });
  fc.assert(property);
});

test("the same filters, however they are written, are the same", () => {
  const [tenantId, userId] = [randomUUID(), randomUUID()];
  type Filters = Omit<MessageInitShape<typeof ListSessionsRequestSchema>, "$typeName">;
  const read = (filters: Filters) =>
    readPage(
      ListSessionsRequestSchema,
      create(ListSessionsRequestSchema, { tenantId, userId, ...filters }),
      z.string(),
    );
  const pageToken = read({}).tokenAfter("last");
  const written = { tenantId: tenantId.toUpperCase(), userId: userId.toUpperCase(), includeEnded: false };
  expect(read({ ...written, pageToken }).after).toBe("last");
  expect(() => read({ includeEnded: true, pageToken })).toThrow("INVALID_REQUEST");
  expect(() => read({ userId: tenantId, pageToken })).toThrow("INVALID_REQUEST");
  const ofCapabilities = (filters: { prefix?: string; pageToken?: string }) =>
    readPage(ListCapabilitiesRequestSchema, create(ListCapabilitiesRequestSchema, filters), z.string());
  const { tokenAfter } = ofCapabilities({});
  expect(ofCapabilities({ prefix: "", pageToken: tokenAfter("last") }).after).toBe("last");
  expect(() => ofCapabilities({ prefix: "l", pageToken: tokenAfter("last") })).toThrow("INVALID_REQUEST");
});
