import { randomInt, randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { recordEvent } from "../../src/audit/record.ts";
import { openDatabase } from "../../src/db/pool.ts";
import { transact } from "../../src/db/transact.ts";
import type { AuditEvent } from "../../src/gen/org/v1/org_pb.ts";
import { createLog } from "../../src/log.ts";
import { detached } from "../../src/rpc/call.ts";
import { refusal } from "../../src/rpc/refusal.ts";
import { expectRefusal } from "../support/refusals.ts";
import { bearer } from "../support/rpcs.ts";
import { startProcess } from "../support/server-process.ts";
import { type Clients, type TestService, clientsOf, startService, transports } from "../support/service.ts";

type Org = Pick<Clients, "org">;
type Watched = Readonly<{ tenantId?: string; afterAuditId?: string }>;

/** The next `count` events of a watch, which is then left. */
const take = async ({ org }: Org, request: Watched, count: number): Promise<readonly AuditEvent[]> => {
  const controller = new AbortController();
  const events: AuditEvent[] = [];
  for await (const { event } of org.watchAuditEvents(request, { signal: controller.signal })) {
    events.push(event!);
    if (events.length === count) break;
  }
  controller.abort();
  return events;
};

/** Waits for a stream to end by itself, and reads its error; every event goes to `heard`. */
const untilEnd = async (stream: AsyncIterable<{ event?: AuditEvent | undefined }>, heard: AuditEvent[] = []) => {
  for await (const { event } of stream) heard.push(event!);
};

const firstEventOf = async ({ org }: Org, tenantId: string) => {
  const { events } = await org.listAuditEvents({ tenantId, pageSize: 1_000 });
  return events.at(-1)?.auditId ?? "";
};

/** Changes the tenant, so that there is an event; answers with its request id. */
const change = async ({ org }: Org, tenantId: string, requestId: string = randomUUID()) => {
  const headers = { "x-request-id": requestId };
  await org.updateTenant({ tenantId, label: requestId, updateMask: { paths: ["label"] } }, { headers });
  return requestId;
};

const requestIdOf = ({ payload }: AuditEvent) => payload?.["request_id"];
const idsOf = (events: readonly AuditEvent[]) => events.map(({ auditId }) => auditId);

const END = "the-end";

/** Watches by random cuts on random servers, each time from its last event on, until it has heard all ends. */
const watchByPieces = async (clients: readonly Clients[], request: Watched, ends: number) => {
  const heard: AuditEvent[] = [];
  let left = ends;
  while (left > 0) {
    const client = clients[randomInt(clients.length)]!;
    const afterAuditId = heard.at(-1)?.auditId ?? request.afterAuditId;
    const controller = new AbortController();
    const stream = client.org.watchAuditEvents(
      { ...request, ...(afterAuditId && { afterAuditId }) },
      { signal: controller.signal },
    );
    let piece = randomInt(1, 60);
    for await (const { event } of stream) {
      heard.push(event!);
      if (requestIdOf(event!) === END) left--;
      if (--piece === 0 || left === 0) break;
    }
    controller.abort();
  }
  return heard;
};

/** Transactions of several events that overtake each other, and some that come to nothing. */
const writeBeside = async ({ databaseUrl, config }: TestService, tenants: readonly string[], times: number) => {
  const db = openDatabase({ url: databaseUrl, settings: config.database, log: createLog("silent") });
  const actors = { requestId: "beside", actor: undefined, callerIfAny: undefined };
  const writeOnce = (tenantId: string) =>
    transact(db, detached(), async (tx) => {
      for (let n = randomInt(1, 4); n > 0; n--) {
        await recordEvent(tx, actors, { action: "x.y", tenantId, entityKind: "tenant", entityId: tenantId });
        for (let pause = randomInt(15); pause > 0; pause--) await tx.query(sql.unsafe`SELECT 1`);
      }
      if (randomInt(4) === 0) throw refusal("CANCELLED");
    }).catch(() => undefined);
  const writer = async (tenantId: string) => {
    for (let n = 0; n < times; n++) await writeOnce(tenantId);
  };
  await Promise.all(tenants.map(writer));
  await db.end();
};

const orderedIds = async ({ pool }: TestService, after: string) => {
  const rows = await pool.any(sql.type(z.object({ audit_id: z.string(), tenant_id: z.string().nullable() }))`
    SELECT o.audit_id, o.tenant_id FROM audit_order o
    WHERE o.position_val > (SELECT p.position_val FROM audit_order p WHERE p.audit_id = ${after}::uuid)
    ORDER BY o.position_val`);
  return rows;
};

test("16 write by two processes: watchers that are cut and resume anywhere hear each event once, in one order", async () => {
  const here = await startService("grpc");
  const other = await startProcess(here.databaseUrl, { LOG_LEVEL: "info" });
  const doors = [here, other].flatMap((server) => transports.map((transport) => clientsOf(transport, server)));
  const by = (token: string) => doors.map((connect) => connect(bearer(token)));
  const clients = by(here.rootToken);
  const tenants = await Promise.all(Array.from({ length: 8 }, () => here.addTenant()));
  const own = await here.addService(["org.audit.read"], tenants[0]);
  const first = await firstEventOf(here, tenants[0]!);
  const ofTenants = await Promise.all(tenants.slice(0, 2).map((tenantId) => firstEventOf(here, tenantId)));
  const watches = [
    ...[1, 2, 3].map(() => watchByPieces(clients, { afterAuditId: first }, tenants.length)),
    ...[0, 1].map((n) => watchByPieces(clients, { tenantId: tenants[n]!, afterAuditId: ofTenants[n]! }, 1)),
    watchByPieces(by(own.token), { tenantId: tenants[0]!, afterAuditId: ofTenants[0]! }, 1),
  ];
  const byRpc = tenants.map(async (tenantId, writer) => {
    for (let n = 0; n < 25; n++) await change(clients[writer % clients.length]!, tenantId);
  });
  await Promise.all([...byRpc, writeBeside(here, tenants, 20)]);
  for (const tenantId of tenants) await change(here, tenantId, END);

  const heard = await Promise.all(watches);
  const ordered = await orderedIds(here, first);
  expect(ordered.length).toBeGreaterThan(8 * 25 + 8 * 10);
  const positions = new Map(ordered.map(({ audit_id }, index) => [audit_id, index]));
  for (const events of heard.slice(0, 3)) {
    // Other tests' events may follow the last end.
    expect(idsOf(events)).toEqual(ordered.slice(0, events.length).map(({ audit_id }) => audit_id));
  }
  for (const [index, tenantId] of [tenants[0]!, tenants[1]!, tenants[0]!].entries()) {
    const after = positions.get(ofTenants[index % 2]!) ?? -1;
    const expected = ordered.filter((row, place) => row.tenant_id === tenantId && place > after);
    expect(idsOf(heard[3 + index]!)).toEqual(expected.map(({ audit_id }) => audit_id));
  }
  // Nothing that was committed is left out of the order, and nothing stands in it that was not.
  const missing = await here.pool.any(sql.unsafe`
    SELECT 1 FROM audit_events e LEFT JOIN audit_order o ON o.audit_id = e.audit_id WHERE o.audit_id IS NULL`);
  expect(missing).toEqual([]);
});

describe.each(transports)("%s", (transport) => {
  test("an event is the one that ListAuditEvents shows", async () => {
    const here = await startService(transport);
    const tenantId = await here.addTenant();
    const afterAuditId = await firstEventOf(here, tenantId);
    await change(here, tenantId);
    const [watched] = await take(here, { tenantId, afterAuditId }, 1);
    const { events } = await here.org.listAuditEvents({ tenantId });
    expect(watched).toEqual(events[0]);
    expect(watched).toMatchObject({ action: "org.tenant.update", tenantId, entityId: tenantId });
  });

  test("a tenant's service hears its tenant alone, and must name it", async () => {
    const here = await startService(transport);
    const [tenantId, other] = [await here.addTenant(), await here.addTenant()];
    const own = await here.addService(["org.audit.read"], tenantId);
    const afterAuditId = await firstEventOf(here, tenantId);
    const changes: string[] = [];
    for (let n = 0; n < 3; n++) {
      await change(here, other);
      changes.push(await change(here, tenantId));
    }
    // The first is its registration.
    const events = await take(own, { tenantId: tenantId.toUpperCase(), afterAuditId }, 4);
    expect(events.map(requestIdOf).slice(1)).toEqual(changes);
    for (const request of [{}, { tenantId: other }, { afterAuditId }]) {
      await expectRefusal(untilEnd(own.org.watchAuditEvents(request)), "TENANT_MISMATCH");
    }
  });

  test("however many events there are already, a watch goes through them without waiting for news", async () => {
    const here = await startService(transport);
    const tenantId = await here.addTenant();
    const afterAuditId = await firstEventOf(here, tenantId);
    const nodes = Array.from({ length: 250 }, () => ({ nodeId: randomUUID(), nodeType: "place", label: "Place" }));
    await here.org.batchCreateNodes({ tenantId, nodes });
    const takeAll = () => take(here, { tenantId, afterAuditId }, nodes.length);
    await takeAll();
    // By now all have their positions, and nothing comes any more.
    expect((await takeAll()).map(({ entityId }) => entityId)).toEqual(nodes.map(({ nodeId }) => nodeId));
  });

  test("after_audit_id must be an event of the stream", async () => {
    const here = await startService(transport);
    const [tenantId, other] = [await here.addTenant(), await here.addTenant()];
    const ofOther = await firstEventOf(here, other);
    const unordered = randomUUID();
    await here.pool.query(sql.unsafe`
      INSERT INTO audit_events (audit_id, tenant_id, action_key, entity_kind_code)
      VALUES (${unordered}::uuid, ${tenantId}::uuid, 'x.y', 'tenant')`);
    for (const afterAuditId of ["x", "", randomUUID(), ofOther, unordered]) {
      const watch = untilEnd(here.org.watchAuditEvents({ tenantId, afterAuditId }));
      expect((await expectRefusal(watch, "INVALID_REQUEST")).fields).toEqual(["after_audit_id"]);
    }
    await here.pool.query(sql.unsafe`DELETE FROM audit_events WHERE audit_id = ${unordered}::uuid`);
  });

  test("a watch may begin after an event that has no position yet", async () => {
    const here = await startService(transport);
    const tenantId = await here.addTenant();
    const started = Promise.withResolvers<undefined>();
    const released = Promise.withResolvers<undefined>();
    const holder = here.pool.transaction(async (tx) => {
      await tx.query(sql.unsafe`SELECT 1 FROM audit_head FOR UPDATE`);
      started.resolve(undefined);
      await released.promise;
    });
    await started.promise;
    await change(here, tenantId);
    const { events } = await here.org.listAuditEvents({ tenantId });
    const next = await change(here, tenantId);
    const watch = take(here, { tenantId, afterAuditId: events[0]!.auditId }, 1);
    released.resolve(undefined);
    await holder;
    expect((await watch).map(requestIdOf)).toEqual([next]);
  });
});

test("grpc: without after_audit_id a watch hears what is recorded once its headers have come", async () => {
  const here = await startService("grpc");
  for (let n = 0; n < 10; n++) {
    const tenantId = await here.addTenant();
    const begun = Promise.withResolvers<undefined>();
    const controller = new AbortController();
    const stream = here.org.watchAuditEvents(
      { tenantId },
      { signal: controller.signal, onHeader: () => begun.resolve(undefined) },
    );
    const iterator = stream[Symbol.asyncIterator]();
    const first = iterator.next();
    await begun.promise;
    const requestId = await change(here, tenantId);
    const heard: unknown[] = [];
    for (let next = await first; !next.done; next = await iterator.next()) {
      heard.push(requestIdOf(next.value.event!));
      if (heard.at(-1) === requestId) break;
    }
    // The tenant's creation may have come just before.
    expect(heard.length).toBeLessThanOrEqual(2);
    controller.abort();
  }
});
