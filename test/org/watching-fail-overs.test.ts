import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, launchForFile, transports } from "../support/service.ts";
import { beginWatch } from "../support/watches.ts";

/** Changes the tenant, and waits until that event has its position. */
const change = async ({ org, pool }: TestService, tenantId: string) => {
  await org.updateTenant({ tenantId, label: randomUUID(), updateMask: { paths: ["label"] } });
  await expect.poll(() => pool.any(sql.unsafe`SELECT 1 FROM audit_pending`)).toEqual([]);
};

/** What a replica that was promoted before it had the latest events looks like: it has never seen them. */
const loseLatest = ({ pool }: TestService, count: number) =>
  pool.transaction(async (tx) => {
    await tx.query(sql.unsafe`UPDATE audit_head SET position_val = position_val - ${count}`);
    await tx.query(sql.unsafe`
      WITH lost AS (
        DELETE FROM audit_order o USING audit_head h WHERE o.position_val > h.position_val RETURNING o.audit_id
      )
      UPDATE audit_events e SET audit_id = gen_random_uuid() FROM lost l WHERE e.audit_id = l.audit_id`);
  });

/** The same, where as many others were recorded before anybody looked. */
const replaceLatest = ({ pool }: TestService, count: number, tenantId: string) =>
  pool.transaction(async (tx) => {
    const latest = sql.unsafe`
      CREATE TEMPORARY TABLE latest ON COMMIT DROP AS
      SELECT o.position_val, o.audit_id, gen_random_uuid() AS other_id FROM audit_order o CROSS JOIN audit_head h
      WHERE o.position_val > h.position_val - ${count}`;
    await tx.query(latest);
    await tx.query(sql.unsafe`DELETE FROM audit_order o USING latest l WHERE o.position_val = l.position_val`);
    await tx.query(sql.unsafe`
      UPDATE audit_events e SET audit_id = l.other_id, tenant_id = ${tenantId}::uuid
      FROM latest l WHERE e.audit_id = l.audit_id`);
    await tx.query(sql.unsafe`
      INSERT INTO audit_order (position_val, audit_id, tenant_id)
      SELECT l.position_val, l.other_id, ${tenantId}::uuid FROM latest l`);
  });

const plant = async (server: TestService) => {
  const tenantId = await server.addTenant();
  await change(server, tenantId);
  const { events } = await server.org.listAuditEvents({ tenantId });
  return { tenantId, first: events.at(-1)!.auditId };
};

describe.each(transports)("%s", (transport) => {
  test.each(["a tenant", "all"])("a watch of %s ends once the database has lost what it heard", async (whose) => {
    const server = await launchForFile(transport);
    const { tenantId, first } = await plant(server);
    const watch = await beginWatch(server, { ...(whose === "a tenant" && { tenantId }), afterAuditId: first });
    for (let n = 0; n < 3; n++) await change(server, tenantId);
    await expect.poll(() => watch.heard.length).toBe(4);
    await loseLatest(server, 3);
    await expectRefusal(watch.ended, "STREAM_ENDED");
    const again = beginWatch(server, { tenantId, afterAuditId: watch.heard.at(-1)!.auditId });
    expect((await expectRefusal(again, "INVALID_REQUEST")).fields).toEqual(["after_audit_id"]);
  });

  test("a watch of a tenant learns that others have the positions of lost events, and none a new one", async () => {
    const server = await launchForFile(transport);
    const { tenantId, first } = await plant(server);
    const other = await plant(server);
    const loser = await beginWatch(server, { tenantId, afterAuditId: first });
    const quiet = await beginWatch(server, { tenantId: other.tenantId, afterAuditId: other.first });
    for (let n = 0; n < 3; n++) await change(server, tenantId);
    await expect.poll(() => loser.heard.length).toBe(4);
    await replaceLatest(server, 3, other.tenantId);
    await expectRefusal(loser.ended, "STREAM_ENDED");
    await expect.poll(() => quiet.heard.length).toBe(4);
  });

  test("a watch that had heard nothing of what was lost goes on with what comes then", async () => {
    const server = await launchForFile(transport);
    const [{ tenantId, first }, other] = [await plant(server), await plant(server)];
    const watch = await beginWatch(server, { tenantId, afterAuditId: first });
    for (let n = 0; n < 3; n++) await change(server, other.tenantId);
    await loseLatest(server, 3);
    await change(server, tenantId);
    await expect.poll(() => watch.heard.length).toBe(2);
  });
});
