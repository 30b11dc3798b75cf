import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { expectRefusal } from "../support/refusals.ts";
import { plantPlace } from "../support/roles.ts";
import { startService, transports } from "../support/service.ts";
import { actionsOf, outcomes } from "../support/users.ts";
import { assignments, at, databaseNow, grants, microsecondsOf, plantPost } from "../support/windows.ts";

const HOUR = 3_600_000_000n;

// The first and the last microsecond that a Timestamp can say.
const FIRST = -62_135_596_800_000_000n;
const LAST = 253_402_300_799_999_999n;

describe.each(transports)("%s", (transport) => {
  describe.each([assignments, grants])("$name", (kind) => {
    const plant = async () => {
      const server = await startService(transport);
      return { server, post: await plantPost(server) };
    };

    test("one begins now where nothing else is said, has no end, and is found as it was answered", async () => {
      const { server, post } = await plant();
      const before = await databaseNow(server);
      const created = await kind.create(server, post);
      const after = await databaseNow(server);
      const { tenantId, userId, nodeId } = post;
      expect(created).toMatchObject({
        tenantId,
        userId,
        nodeId,
        id: expect.stringMatching(/^[0-9a-f]{8}-[0-9a-f]{4}-7/) as string,
      });
      expect(created).not.toHaveProperty("endTime");
      expect(created).not.toHaveProperty("cancelTime");
      expect(microsecondsOf(created.startTime)).toBeGreaterThan(before);
      expect(microsecondsOf(created.startTime)).toBeLessThan(after);
      expect(await kind.get(server, created)).toEqual(created);
      const upper = { tenantId: tenantId.toUpperCase(), id: created.id.toUpperCase() };
      expect(await kind.get(server, upper)).toEqual(created);
    });

    test.each([
      ["in the past", -2n * HOUR - 1n, -HOUR - 1n],
      ["later", HOUR, HOUR + 1n],
    ])("one may count %s, to the microsecond", async (_, start, end) => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const created = await kind.create(server, { ...post, startTime: at(now + start), endTime: at(now + end) });
      expect(created).toMatchObject({ startTime: at(now + start), endTime: at(now + end) });
      expect(await kind.get(server, created)).toEqual(created);
    });

    test("times are kept from the first to the last that can be said; what is finer than a microsecond is cut off", async () => {
      const { server, post } = await plant();
      const whole = { startTime: at(FIRST, 999), endTime: at(LAST, 999) };
      const created = await kind.create(server, { ...post, ...whole, id: randomUUID() });
      expect(created).toMatchObject({ startTime: at(FIRST), endTime: at(LAST) });
      expect(await kind.create(server, { ...post, ...whole, id: created.id })).toEqual(created);
      expect(await kind.get(server, created)).toEqual(created);
      const far = { startTime: at(LAST - 1n), endTime: at(LAST) };
      expect(await kind.create(server, { ...post, ...far })).toMatchObject(far);
    });

    test("an end that is not later than the start is refused by name, and nothing is written", async () => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const id = randomUUID();
      for (const window of [
        { startTime: at(now), endTime: at(now) },
        { startTime: at(now), endTime: at(now, 999) },
        { startTime: at(now), endTime: at(now - 1n) },
        { endTime: at(now) },
        { endTime: at(FIRST) },
      ]) {
        const { fields } = await expectRefusal(kind.create(server, { ...post, ...window, id }), "INVALID_REQUEST");
        expect(fields).toEqual(["end_time"]);
      }
      await expectRefusal(kind.get(server, { ...post, id }), kind.reasons.notFound);
      const shortest = { startTime: at(now), endTime: at(now + 1n) };
      expect(await kind.create(server, { ...post, ...shortest, id })).toMatchObject(shortest);
      expect(await actionsOf(server, id)).toEqual([kind.actions.create]);
    });

    test("a repeat answers as the first did and writes nothing; what it leaves out is not compared", async () => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const window = { ...post, id: randomUUID(), startTime: at(now - HOUR), endTime: at(now + HOUR) };
      const first = await kind.create(server, window);
      const { startTime, endTime, ...bare } = window;
      const upper = {
        tenantId: post.tenantId.toUpperCase(),
        id: window.id.toUpperCase(),
        userId: post.userId.toUpperCase(),
        nodeId: post.nodeId.toUpperCase(),
        roleId: post.roleId.toUpperCase(),
      };
      for (const repeat of [window, bare, { ...bare, startTime }, { ...bare, endTime }, upper]) {
        expect(await kind.create(server, repeat)).toEqual(first);
      }
      const ended = await kind.end(server, { tenantId: post.tenantId, id: window.id });
      expect(await kind.create(server, { ...bare, startTime })).toEqual(ended);
      expect(await actionsOf(server, window.id)).toEqual([kind.actions.end, kind.actions.create]);
    });

    test("an id that is taken by another content is refused, also by another tenant's", async () => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const window = { ...post, id: randomUUID(), startTime: at(now - HOUR), endTime: at(now + HOUR) };
      const first = await kind.create(server, window);
      const { userId, nodeId } = await plantPlace(server, post.tenantId);
      const contents = [
        { userId },
        { nodeId },
        { startTime: at(now - HOUR + 1n) },
        { endTime: at(now + HOUR + 1n) },
        { userId: randomUUID() },
        await kind.other(server, post),
        { tenantId: await server.addTenant() },
        await plantPost(server),
      ];
      for (const content of contents) {
        const repeat = kind.create(server, { ...window, ...content });
        const { metadata } = await expectRefusal(repeat, kind.reasons.idTaken);
        expect(metadata).toMatchObject({ [kind.idKey]: window.id });
      }
      expect(await kind.get(server, window)).toEqual(first);
      expect(await actionsOf(server, window.id)).toEqual([kind.actions.create]);
    });

    test("an unknown user or node, or another tenant's, is refused, and an unknown tenant has no users", async () => {
      const { server, post } = await plant();
      const other = await plantPost(server);
      const id = randomUUID();
      const lost = async (changed: object, reason: "USER_NOT_FOUND" | "NODE_NOT_FOUND") =>
        expectRefusal(kind.create(server, { ...post, id, ...changed }), reason);
      for (const userId of [randomUUID(), other.userId]) {
        expect((await lost({ userId }, "USER_NOT_FOUND")).metadata).toMatchObject({ user_id: userId });
      }
      for (const nodeId of [randomUUID(), other.nodeId]) {
        expect((await lost({ nodeId }, "NODE_NOT_FOUND")).metadata).toMatchObject({ node_id: nodeId });
      }
      await lost({ tenantId: randomUUID() }, "USER_NOT_FOUND");
      await lost({ tenantId: other.tenantId }, "USER_NOT_FOUND");
      await expectRefusal(kind.get(server, { ...post, id }), kind.reasons.notFound);
      expect(await actionsOf(server, id)).toEqual([]);
    });

    test("one may name an inactive user and an inactive node, but no erased user", async () => {
      const { server, post } = await plant();
      const id = randomUUID();
      const { tenantId, userId } = post;
      await server.auth.deactivateUser({ tenantId, userId });
      await server.pool.query(sql.unsafe`
        UPDATE org_nodes SET active_flag = false WHERE org_node_id = ${post.nodeId}::uuid`);
      const first = await kind.create(server, { ...post, id });
      await server.auth.eraseUser({ tenantId, userId });
      const { metadata } = await expectRefusal(kind.create(server, post), "USER_ERASED");
      expect(metadata).toMatchObject({ user_id: userId });
      const again = await kind.create(server, { ...post, id });
      expect(again).toMatchObject({ id, startTime: first.startTime });
      expect(again.endTime).toBeDefined();
    });

    test("20 repeats of one create at once all answer one, with one event", async () => {
      const { server, post } = await plant();
      const id = randomUUID();
      const answers = await Promise.all(Array.from({ length: 20 }, () => kind.create(server, { ...post, id })));
      expect(new Set(answers.map((answer) => microsecondsOf(answer.startTime))).size).toBe(1);
      expect(await actionsOf(server, id)).toEqual([kind.actions.create]);
    });

    test("of 20 creates with one id and different contents at once one wins", async () => {
      const { server, post } = await plant();
      const id = randomUUID();
      const now = await databaseNow(server);
      const calls = Array.from({ length: 20 }, (_, n) =>
        kind.create(server, { ...post, id, startTime: at(now + BigInt(n)) }),
      );
      const { answered, reasons } = await outcomes(calls);
      expect({ answered, reasons: new Set(reasons) }).toEqual({
        answered: 1,
        reasons: new Set([kind.reasons.idTaken]),
      });
      expect(await actionsOf(server, id)).toEqual([kind.actions.create]);
    });
  });
});
