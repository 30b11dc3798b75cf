import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { AccessScope } from "../../src/gen/org/v1/org_pb.ts";
import { expectRefusal } from "../support/refusals.ts";
import { startService, transports } from "../support/service.ts";
import {
  type Filter,
  NOW_US,
  type Row,
  assignmentList,
  counts,
  grantList,
  plantRows,
  walk,
} from "../support/window-lists.ts";
import { at } from "../support/windows.ts";

describe.each(transports)("%s", (transport) => {
  describe.each([assignmentList, grantList])("$name", (list) => {
    test("every filter holds, alone and with any other, and cancelled ones never count", async () => {
      const server = await startService(transport);
      const { tenantId, user, node, role, rows } = await plantRows(server);
      const last = list === grantList ? { scope: AccessScope.READ } : { roleId: role };
      const filters: readonly (readonly [Partial<Filter>, (row: Row) => boolean])[] = [
        [{ userId: user.toUpperCase() }, (row) => row.user === user],
        [{ nodeId: node }, (row) => row.node === node],
        [last, (row) => row.role === role],
        [{ activeAt: at(NOW_US) }, (row) => counts(row, NOW_US)],
      ];
      for (let chosen = 0; chosen < 2 ** filters.length; chosen++) {
        const some = filters.filter((_, bit) => chosen & (1 << bit));
        const filter = Object.assign({ tenantId }, ...some.map(([one]) => one)) as Filter;
        const expected = rows.filter((row) => some.every(([, holds]) => holds(row))).map(({ id }) => id);
        expect((await list.ids(server, { ...filter, pageSize: 1_000 })).ids).toEqual(expected);
        expect((await walk(list, server, filter, 7)).flat()).toEqual(expected);
      }
    });

    test("a moment is held to the microsecond: starts count from theirs, ends until theirs", async () => {
      const server = await startService(transport);
      const { tenantId, rows } = await plantRows(server);
      for (let us = NOW_US - 3n; us <= NOW_US + 3n; us++) {
        const expected = rows.filter((row) => counts(row, us)).map(({ id }) => id);
        for (const nanos of [0, 999]) {
          expect((await list.ids(server, { tenantId, activeAt: at(us, nanos), pageSize: 1_000 })).ids).toEqual(
            expected,
          );
        }
      }
      expect((await list.ids(server, { tenantId, activeAt: at(-62_135_596_800_000_000n) })).ids).toEqual([]);
      const open = rows.filter(({ end, cancelled }) => end === null && cancelled === null);
      const lastMoment = await list.ids(server, { tenantId, activeAt: at(253_402_300_799_999_999n), pageSize: 1_000 });
      expect(lastMoment.ids).toEqual(open.map(({ id }) => id));
    });

    test("each is listed as it is got", async () => {
      const server = await startService(transport);
      const { tenantId, user } = await plantRows(server);
      const [first, ...others] = await list.all(server, { tenantId, userId: user, pageSize: 10 });
      expect(others).toHaveLength(9);
      const { assignmentId, grantId } = first as { assignmentId?: string; grantId?: string };
      expect(await list.get(server, tenantId, assignmentId ?? grantId ?? "")).toEqual(first);
    });

    test("unknown things and other tenants' have none, and a tenant's service sees its own alone", async () => {
      const server = await startService(transport);
      const { tenantId, user, node, rows } = await plantRows(server);
      const other = await server.addTenant();
      for (const filter of [
        { tenantId: randomUUID() },
        { tenantId: other },
        { tenantId: other, userId: user },
        { tenantId: other, nodeId: node },
        { tenantId, userId: randomUUID() },
        { tenantId, nodeId: randomUUID() },
      ]) {
        expect(await list.ids(server, filter)).toEqual({ ids: [], nextPageToken: "" });
      }
      const own = await server.addService(["org.*"], tenantId);
      expect((await list.ids(own, { tenantId, pageSize: 1_000 })).ids).toEqual(rows.map(({ id }) => id));
      await expectRefusal(list.ids(own, { tenantId: other }), "TENANT_MISMATCH");
    });

    test("a filter or a page outside its bounds names its field, and a token is bound to its filters", async () => {
      const server = await startService(transport);
      const { tenantId, user } = await plantRows(server);
      const { nextPageToken: pageToken } = await list.ids(server, { tenantId, pageSize: 3 });
      const fieldsOf = async (filter: Partial<Filter>) =>
        (await expectRefusal(list.ids(server, { tenantId, ...filter }), "INVALID_REQUEST")).fields;
      expect(await fieldsOf({ userId: "x", nodeId: "y" })).toEqual(["user_id", "node_id"]);
      expect(await fieldsOf({ pageSize: -1 })).toEqual(["page_size"]);
      expect(await fieldsOf({ userId: user, pageToken })).toEqual(["page_token"]);
      expect(await fieldsOf({ activeAt: at(NOW_US), pageToken })).toEqual(["page_token"]);
    });
  });
});
