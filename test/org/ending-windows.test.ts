import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type WindowRow, endWindow } from "../../src/org/windows.ts";
import { Refusal } from "../../src/rpc/refusal.ts";
import { expectRefusal } from "../support/refusals.ts";
import { startService, transports } from "../support/service.ts";
import { actionsOf, eventsOf } from "../support/users.ts";
import { assignments, at, databaseNow, grants, microsecondsOf, plantPost, recordedTimes } from "../support/windows.ts";

const HOUR = 3_600_000_000n;

describe.each(transports)("%s", (transport) => {
  describe.each([assignments, grants])("$name", (kind) => {
    const plant = async () => {
      const server = await startService(transport);
      return { server, post: await plantPost(server) };
    };

    test("making, ending and cancelling one are recorded, with the ids of all that it names and with its times", async () => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const created = await kind.create(server, { ...post, startTime: at(now + HOUR) });
      const { id, tenantId } = created;
      const planned = await kind.end(server, { tenantId, id, endTime: at(now + 2n * HOUR) });
      const cancelled = await kind.end(server, { tenantId, id });
      const { userId, nodeId, roleId } = post;
      const payload = {
        user_id: userId,
        node_id: nodeId,
        ...(kind === assignments ? { role_id: roleId } : { scope: "read" }),
        request_id: expect.any(String) as string,
      };
      const events = await eventsOf(server, id);
      expect(events.map((event) => event.action)).toEqual([kind.actions.end, kind.actions.end, kind.actions.create]);
      for (const event of events) expect(event).toMatchObject({ tenantId, entityKind: kind.entityKind, entityId: id });
      expect(events.map((event) => event.payload)).toEqual(
        [cancelled, planned, created].map((window) => ({ ...payload, ...recordedTimes(window) })),
      );
    });

    test("one that is ended ends now; ended again it stays as it is, whenever it was to end", async () => {
      const { server, post } = await plant();
      const created = await kind.create(server, post);
      const before = await databaseNow(server);
      const { tenantId, id } = created;
      const ended = await kind.end(server, { tenantId, id });
      const after = await databaseNow(server);
      expect(ended).toEqual({ ...created, endTime: ended.endTime });
      expect(microsecondsOf(ended.endTime)).toBeGreaterThan(before);
      expect(microsecondsOf(ended.endTime)).toBeLessThan(after);
      for (const endTime of [undefined, at(after + HOUR), ended.endTime, at(before)]) {
        expect(await kind.end(server, { tenantId, id, ...(endTime && { endTime }) })).toEqual(ended);
      }
      expect(await kind.get(server, created)).toEqual(ended);
      expect(await actionsOf(server, id)).toEqual([kind.actions.end, kind.actions.create]);
    });

    test("a planned end moves earlier and later, and the same one again writes nothing", async () => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const created = await kind.create(server, { ...post, endTime: at(now + HOUR) });
      const { tenantId, id } = created;
      for (const end of [HOUR, HOUR / 2n, HOUR / 2n, 2n * HOUR]) {
        const endTime = at(now + end);
        expect(await kind.end(server, { tenantId, id, endTime })).toEqual({ ...created, endTime });
      }
      const { end, create } = kind.actions;
      expect(await actionsOf(server, id)).toEqual([end, end, create]);
    });

    test("an end in the past is refused by name, and nothing is written", async () => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const created = await kind.create(server, { ...post, startTime: at(now - HOUR) });
      const { tenantId, id } = created;
      for (const us of [now, now - HOUR, now - HOUR - 1n, 0n]) {
        const end = kind.end(server, { tenantId, id, endTime: at(us) });
        expect((await expectRefusal(end, "INVALID_REQUEST")).fields).toEqual(["end_time"]);
      }
      expect(await kind.get(server, created)).toEqual(created);
      expect(await actionsOf(server, id)).toEqual([kind.actions.create]);
    });

    test.each([
      ["now", undefined],
      ["before it begins", 30n],
      ["as it begins", 60n],
    ])("one that has not begun is cancelled when it is ended %s, and keeps its end", async (_, minutes) => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const window = { startTime: at(now + HOUR), endTime: at(now + 2n * HOUR) };
      const created = await kind.create(server, { ...post, ...window });
      const { tenantId, id } = created;
      const end = { tenantId, id, ...(minutes !== undefined && { endTime: at(now + (minutes * HOUR) / 60n) }) };
      const cancelled = await kind.end(server, end);
      expect(cancelled).toEqual({ ...created, cancelTime: cancelled.cancelTime });
      expect(microsecondsOf(cancelled.cancelTime)).toBeGreaterThan(now);
      expect(microsecondsOf(cancelled.cancelTime)).toBeLessThan(await databaseNow(server));
      expect(await kind.end(server, end)).toEqual(cancelled);
      expect(await kind.end(server, { tenantId, id, endTime: at(now + 90n * HOUR) })).toEqual(cancelled);
      expect(await kind.get(server, created)).toEqual(cancelled);
      expect(await actionsOf(server, id)).toEqual([kind.actions.end, kind.actions.create]);
    });

    test("one that will have begun by then ends then", async () => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const created = await kind.create(server, { ...post, startTime: at(now + HOUR) });
      const { tenantId, id } = created;
      const endTime = at(now + HOUR + 1n);
      expect(await kind.end(server, { tenantId, id, endTime })).toEqual({ ...created, endTime });
    });

    test("an unknown one, and another tenant's, is not found", async () => {
      const { server, post } = await plant();
      const { id } = await kind.create(server, post);
      const tenantId = await server.addTenant();
      for (const unknown of [
        { tenantId: post.tenantId, id: randomUUID() },
        { tenantId, id },
        { tenantId: randomUUID(), id },
      ]) {
        for (const call of [kind.get, kind.end]) {
          const { metadata } = await expectRefusal(call(server, unknown), kind.reasons.notFound);
          expect(metadata).toMatchObject({ [kind.idKey]: unknown.id });
        }
      }
      expect(await actionsOf(server, id)).toEqual([kind.actions.create]);
    });

    test("a tenant's service is kept to its tenant, and reading lets nobody write", async () => {
      const { server, post } = await plant();
      const { id, tenantId } = await kind.create(server, post);
      const own = await server.addService(["org.*"], tenantId);
      expect(await kind.get(own, { tenantId, id })).toMatchObject({ id });
      const foreign = await server.addService(["org.*"], await server.addTenant());
      await expectRefusal(kind.get(foreign, { tenantId, id }), "TENANT_MISMATCH");
      const reader = await server.addService(["org.assignment.read", "org.visibility.read"]);
      await expectRefusal(kind.create(reader, post), "PERMISSION_MISSING");
      await expectRefusal(kind.end(reader, { tenantId, id }), "PERMISSION_MISSING");
    });

    test("two that say the same may stand side by side", async () => {
      const { server, post } = await plant();
      const startTime = at(await databaseNow(server));
      const [one, two] = [
        await kind.create(server, { ...post, startTime }),
        await kind.create(server, { ...post, startTime }),
      ];
      expect(one.id).not.toBe(two.id);
      expect((await kind.end(server, { tenantId: post.tenantId, id: one.id })).endTime).toBeDefined();
      expect(await kind.get(server, two)).toEqual(two);
    });

    test("ended 20 times at once it ends once, with one event", async () => {
      const { server, post } = await plant();
      const created = await kind.create(server, post);
      const { tenantId, id } = created;
      const answers = await Promise.all(Array.from({ length: 20 }, () => kind.end(server, { tenantId, id })));
      expect(new Set(answers.map((answer) => microsecondsOf(answer.endTime))).size).toBe(1);
      expect(await actionsOf(server, id)).toEqual([kind.actions.end, kind.actions.create]);
    });
  });
});

describe("a window that is ended", () => {
  const moment = fc.bigInt(0n, 8n);
  const optional = fc.option(moment);
  const counts = ({ start_us, end_us, cancelled_us }: WindowRow, us: bigint) =>
    cancelled_us === null && start_us <= us && (end_us === null || us < end_us);
  const isKept = ({ start_us, end_us, cancelled_us }: WindowRow) =>
    (end_us === null || end_us > start_us) && (cancelled_us === null || cancelled_us < start_us);
  const windows = fc
    .record({ start_us: moment, end_us: optional, cancelled_us: optional })
    .filter((row) => isKept(row));

  test("counts as before until then and never from then on; what is over stays, and the past is refused", () => {
    const property = fc.property(windows, optional, moment, (row, askedUs, nowUs) => {
      const isOver = row.cancelled_us !== null || (row.end_us !== null && row.end_us <= nowUs);
      const endUs = askedUs ?? nowUs;
      const answer = endWindow(row, askedUs, nowUs);
      const isRefused = answer instanceof Refusal;
      expect(isRefused).toBe(!isOver && endUs < nowUs);
      if (isOver) expect(answer).toBeUndefined();
      if (isOver || isRefused) return;
      const after = answer ?? row;
      expect(isKept(after)).toBe(true);
      if (answer) expect(answer).not.toEqual(row);
      for (let us = 0n; us < 10n; us++) {
        // An end comes after the start: what begins at this very microsecond counts for it.
        const counted = row.start_us <= us && (us < endUs || (row.start_us === nowUs && us === nowUs));
        expect(counts(after, us)).toBe(counted);
      }
    });
    fc.assert(property, { numRuns: 2_000 });
  });
});
