import { type DescMessage, type Message, toBinary } from "@bufbuild/protobuf";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { ExplainAccessResponseSchema, ListAuditEventsResponseSchema } from "../../src/gen/org/v1/org_pb.ts";
import { ListServicesResponseSchema } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { selectServices } from "../../src/service-identity/services.ts";
import { addCapabilities, addRole } from "../support/roles.ts";
import { type TestService, startService, transports } from "../support/service.ts";
import { addChain } from "../support/trees.ts";
import { addUser } from "../support/users.ts";

/** What clients of gRPC take in one message unless they are told to take more. */
const CLIENTS_TAKE = 4 * 2 ** 20;

type Page = Message & { readonly nextPageToken: string };

/** All pages of a list, none of which a client would refuse. */
const pagesOf = async <P extends Page>(schema: DescMessage, ask: (pageToken: string) => Promise<P>) => {
  const pages: P[] = [];
  for (let pageToken = ""; pages.length === 0 || pageToken !== ""; pageToken = pages.at(-1)!.nextPageToken) {
    const page = await ask(pageToken);
    expect(toBinary(schema, page).length).toBeLessThan(CLIENTS_TAKE);
    pages.push(page);
  }
  return pages;
};

describe.each(transports)("%s: a page is short where its rows are large", (transport) => {
  test("of events, however large the first is", async () => {
    const { pool, org, addTenant } = await startService(transport);
    const tenantId = await addTenant();
    const plant = (count: number, words: number) =>
      pool.query(sql.unsafe`
        INSERT INTO audit_events (audit_id, tenant_id, action_key, entity_kind_code, occurred_utc, payload_json)
        SELECT gen_random_uuid(), ${tenantId}::uuid, 'large', 'role', now() + n * interval '1 second',
          jsonb_build_object('keys', (SELECT jsonb_agg(repeat('k', 128)) FROM generate_series(1, ${words}::int)))
        FROM generate_series(1, ${count}::int) n`);
    await plant(45, 1_000);
    await plant(1, 25_000);
    const pages = await pagesOf(ListAuditEventsResponseSchema, (pageToken) =>
      org.listAuditEvents({ tenantId, action: "large", pageToken }),
    );
    const ids = pages.flatMap(({ events }) => events.map(({ auditId }) => auditId));
    expect(new Set(ids).size).toBe(46);
    expect(ids).toHaveLength(46);
  });

  test("of events that were loaded with many numbers, each of which is longer than in JSON", async () => {
    const { pool, org, addTenant } = await startService(transport);
    const tenantId = await addTenant();
    await pool.query(sql.unsafe`
      INSERT INTO audit_events (audit_id, tenant_id, action_key, entity_kind_code, occurred_utc, payload_json)
      SELECT gen_random_uuid(), ${tenantId}::uuid, 'numbers', 'role', now() + n * interval '1 second',
        jsonb_build_object('counts', (SELECT jsonb_agg(1) FROM generate_series(1, 60000)))
      FROM generate_series(1, 12) n`);
    const pages = await pagesOf(ListAuditEventsResponseSchema, (pageToken) =>
      org.listAuditEvents({ tenantId, action: "numbers", pageToken }),
    );
    const ids = pages.flatMap(({ events }) => events.map(({ auditId }) => auditId));
    expect(new Set(ids).size).toBe(12);
    expect(ids).toHaveLength(12);
  });

  test("of services with many permissions", async () => {
    const { pool, services, addTenant } = await startService(transport);
    const tenantId = await addTenant();
    await pool.query(sql.unsafe`
      WITH service AS (
        INSERT INTO services (svc_id, tenant_id, svc_key, svc_label, svc_state_code)
        SELECT gen_random_uuid(), ${tenantId}::uuid, 'large-' || gen_random_uuid(), 'Large', 'active'
        FROM generate_series(1, 500)
        RETURNING svc_id
      )
      INSERT INTO service_permissions (svc_id, perm_key)
      SELECT s.svc_id, rpad('p' || n, 128, 'x') FROM service s CROSS JOIN generate_series(1, 100) n`);
    const pages = await pagesOf(ListServicesResponseSchema, (pageToken) =>
      services.listServices({ tenantId, pageSize: 1_000, pageToken }),
    );
    const ids = pages.flatMap((page) => page.services.map(({ serviceId }) => serviceId));
    expect(new Set(ids).size).toBe(500);
    expect(ids).toHaveLength(500);
    // What the page has no room for is not read either.
    const rows = await pool.any(selectServices(tenantId, null, null, 1_000));
    expect(rows.flatMap(({ perm_keys }) => perm_keys)).toHaveLength(20_000);
  });
});

describe.each(transports)("%s: an explanation of very much", (transport) => {
  /** A user with as many assignments at the root of a chain, of which the last one is asked about; all labels are long. */
  const plant = async (server: TestService, ended: number, standing: number) => {
    const { tenantId, userId } = await addUser(server);
    const [capability = ""] = await addCapabilities(server, "a");
    const label = "😀".repeat(199);
    const { roleId } = await addRole(server, { tenantId, label, capabilityKeys: [capability] });
    const chain = await addChain(server, tenantId, 60, undefined, label);
    const [root = "", leaf = ""] = [chain[0], chain.at(-1)];
    for (const [count, end] of [
      [ended, "-1 hour"],
      [standing, "1 hour"],
    ] as const) {
      await server.pool.query(sql.unsafe`
        INSERT INTO org_assignments (assignment_id, tenant_id, user_id, org_node_id, role_id, start_utc, end_utc)
        SELECT gen_random_uuid(), ${tenantId}::uuid, ${userId}::uuid, ${root}::uuid, ${roleId}::uuid,
          now() - interval '1 day', now() + ${end}::interval FROM generate_series(1, ${count}::int)`);
    }
    return { tenantId, userId, nodeId: leaf, capability };
  };

  test("names what grants before what does not, and is none that a client would refuse", async () => {
    const server = await startService(transport);
    for (const [ended, standing] of [
      [5_000, 1],
      [5_000, 400],
    ] as const) {
      const answer = await server.org.explainAccess(await plant(server, ended, standing));
      expect(answer.allowed).toBe(true);
      expect(toBinary(ExplainAccessResponseSchema, answer).length).toBeLessThan(CLIENTS_TAKE);
      expect(answer.grants.length).toBe(Math.min(standing, Math.floor(3_500 / 61)));
      expect(answer.grants.every(({ path }) => path.length === 60)).toBe(true);
      expect(answer.nearMisses.length).toBe(3_500 - 61 * answer.grants.length);
    }
  });
});
