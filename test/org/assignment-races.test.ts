import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { AccessScope } from "../../src/gen/org/v1/org_pb.ts";
import { heldUp } from "../support/held-up.ts";
import { expectRefusal } from "../support/refusals.ts";
import { plantRoles } from "../support/roles.ts";
import { type TestService, startService } from "../support/service.ts";
import { plantRoots } from "../support/trees.ts";
import { eraseUser } from "../support/user-rows.ts";
import { actionsOf, outcomes, plantUsers } from "../support/users.ts";
import { type Kind, type Post, assignments, at, databaseNow, grants, plantPost } from "../support/windows.ts";

const ROUNDS = 100;
const AT_ONCE = 10;
const MINUTE = 60_000_000n;

const countRow = z.object({ count: z.bigint() });

/** Assignments and grants that count now or later though their user is erased or their role deleted. */
const wrong = ({ pool }: TestService, tenantId: string) =>
  pool.oneFirst(sql.type(countRow)`
    WITH windows AS (
      SELECT user_id, role_id, end_utc, cancelled_utc FROM org_assignments WHERE tenant_id = ${tenantId}::uuid
      UNION ALL
      SELECT user_id, NULL, end_utc, cancelled_utc FROM visibility_grants WHERE tenant_id = ${tenantId}::uuid
    )
    SELECT count(*) AS count
    FROM windows w JOIN users u ON u.user_id = w.user_id LEFT JOIN roles r ON r.role_id = w.role_id
    WHERE (u.erased_utc IS NOT NULL OR r.deleted_utc IS NOT NULL) AND w.cancelled_utc IS NULL
      AND (w.end_utc IS NULL OR w.end_utc > now())`);

const plantNodes = async (server: TestService, tenantId: string): Promise<readonly string[]> => {
  const ids = await plantRoots(server, tenantId, ROUNDS);
  await server.pool.query(sql.unsafe`
    INSERT INTO org_node_paths (tenant_id, ancestor_org_node_id, descendant_org_node_id, depth_val)
    SELECT ${tenantId}::uuid, n.id, n.id, 0 FROM unnest(${sql.array(ids, "uuid")}) AS n (id)`);
  return ids;
};

/** From its n-th on, and then those before. */
const turned = <T>(list: readonly T[], n: number): readonly T[] => [
  ...list.slice(n % list.length),
  ...list.slice(0, n % list.length),
];

/**
 * Rounds of calls made at once, some rounds beside each other; each call is the first in some. What is refused otherwise
 * than a race may be fails.
 */
const race = async <T>(
  subjects: readonly T[],
  calls: (subject: T) => readonly (() => Promise<unknown>)[],
  may: readonly string[],
) => {
  const seen = new Set<string>();
  for (let from = 0; from < subjects.length; from += AT_ONCE) {
    const round = subjects.slice(from, from + AT_ONCE).flatMap((subject, n) => turned(calls(subject), from + n));
    const { reasons } = await outcomes(round.map((call) => call()));
    for (const reason of reasons) {
      expect(may).toContain(reason);
      seen.add(reason ?? "");
    }
  }
  return seen;
};

const lockUser = ({ userId }: Post) => sql.unsafe`SELECT FROM users WHERE user_id = ${userId}::uuid FOR UPDATE`;
const lockRole = ({ roleId }: Post) => sql.unsafe`SELECT FROM roles WHERE role_id = ${roleId}::uuid FOR UPDATE`;
const lockNode = ({ nodeId }: Post) => sql.unsafe`SELECT FROM org_nodes WHERE org_node_id = ${nodeId}::uuid FOR UPDATE`;

const plant = async () => {
  const server = await startService("grpc");
  return { server, post: await plantPost(server) };
};

describe.each([assignments, grants])("$name", (kind: Kind) => {
  const idColumn = sql.identifier([kind.idKey]);
  const table = sql.identifier([kind.table]);

  test("one waits for its user's erasure, and is refused", async () => {
    const { server, post } = await plant();
    const create = heldUp(
      server,
      lockUser(post),
      () => kind.create(server, post),
      (tx) => tx.query(eraseUser(post)),
    );
    await expectRefusal(create, "USER_ERASED");
  });

  test("one waits for its node's deletion, and is refused", async () => {
    const { server, post } = await plant();
    const remove = sql.unsafe`DELETE FROM org_nodes WHERE org_node_id = ${post.nodeId}::uuid`;
    const create = heldUp(
      server,
      lockNode(post),
      () => kind.create(server, post),
      (tx) => tx.query(remove),
    );
    await expectRefusal(create, "NODE_NOT_FOUND");
  });

  test.each([["its user", lockUser], ...(kind === assignments ? [["its role", lockRole] as const] : [])] as const)(
    "an end that moves waits for who holds %s, and finds it ended",
    async (_, lock) => {
      const { server, post } = await plant();
      const now = await databaseNow(server);
      const { tenantId, id } = await kind.create(server, {
        ...post,
        startTime: at(now - 2n * MINUTE),
        endTime: at(now + MINUTE),
      });
      const end = sql.unsafe`
        UPDATE ${table} SET end_utc = now() - interval '1 minute' WHERE ${idColumn} = ${id}::uuid`;
      const later = { tenantId, id, endTime: at(now + 2n * MINUTE) };
      const ended = await heldUp(
        server,
        lock(post),
        () => kind.end(server, later),
        (tx) => tx.query(end),
      );
      expect(ended.endTime!.seconds).toBeLessThan(at(now).seconds);
      expect(await actionsOf(server, id)).toEqual([kind.actions.create]);
    },
  );

  test("an end waits for another, and what it decides is no older than that", async () => {
    const { server, post } = await plant();
    const { tenantId, id } = await kind.create(server, post);
    const lock = sql.unsafe`SELECT FROM ${table} WHERE ${idColumn} = ${id}::uuid FOR NO KEY UPDATE`;
    // Later than the waiting call began, and over before it goes on.
    const end = sql.unsafe`UPDATE ${table} SET end_utc = clock_timestamp() WHERE ${idColumn} = ${id}::uuid`;
    const ended = await heldUp(
      server,
      lock,
      () => kind.end(server, { tenantId, id }),
      (tx) => tx.query(end),
    );
    expect(await kind.get(server, { tenantId, id })).toEqual(ended);
    expect(await actionsOf(server, id)).toEqual([kind.actions.create]);
  });

  test("one and its node's deletion exclude each other", async () => {
    const { server, post } = await plant();
    const { tenantId } = post;
    const nodes = await plantNodes(server, tenantId);
    const calls = (nodeId: string) => [
      () => kind.create(server, { ...post, nodeId, id: nodeId }),
      () => server.org.deleteNode({ tenantId, nodeId }),
    ];
    const seen = await race(nodes, calls, ["NODE_NOT_FOUND", "NODE_IN_USE"]);
    expect(seen).toContain("NODE_IN_USE");
    // A node that is left has one.
    const bare = sql.type(countRow)`
      SELECT count(*) AS count FROM org_nodes n
      WHERE n.org_node_id = ANY(${sql.array(nodes, "uuid")})
        AND NOT EXISTS (SELECT FROM ${table} w WHERE w.org_node_id = n.org_node_id)`;
    expect(await server.pool.oneFirst(bare)).toBe(0n);
  });
});

test("an assignment waits for its role's deletion, and is refused", async () => {
  const { server, post } = await plant();
  const remove = sql.unsafe`UPDATE roles SET deleted_utc = now() WHERE role_id = ${post.roleId}::uuid`;
  const assign = heldUp(
    server,
    lockRole(post),
    () => assignments.create(server, post),
    (tx) => tx.query(remove),
  );
  await expectRefusal(assign, "ROLE_NOT_FOUND");
});

test("a role that is deleted while it is assigned keeps no assignment", async () => {
  const { server, post } = await plant();
  const { tenantId } = post;
  const calls = (roleId: string) => [
    () => server.org.assignRole({ ...post, roleId }),
    () => server.org.deleteRole({ tenantId, roleId }),
    () => server.org.assignRole({ ...post, roleId }),
  ];
  const seen = await race(await plantRoles(server, tenantId, ROUNDS), calls, ["ROLE_NOT_FOUND", "ROLE_IN_USE"]);
  expect([...seen].sort()).toEqual(["ROLE_IN_USE", "ROLE_NOT_FOUND"]);
  expect(await wrong(server, tenantId)).toBe(0n);
});

test("a user who is erased meanwhile keeps no assignment and no grant", async () => {
  const { server, post } = await plant();
  const { tenantId, nodeId, roleId } = post;
  const contacts = Array.from({ length: ROUNDS }, (_, n) => ({ email: null, phone: `+1${n}`, name: null }));
  const calls = (userId: string) => [
    () => server.org.assignRole({ tenantId, nodeId, roleId, userId }),
    () => server.org.grantVisibility({ tenantId, nodeId, scope: AccessScope.READ, userId }),
    () => server.auth.eraseUser({ tenantId, userId }),
    () => server.org.assignRole({ tenantId, nodeId, roleId, userId }),
    () => server.org.grantVisibility({ tenantId, nodeId, scope: AccessScope.ANALYZE, userId }),
  ];
  const seen = await race(await plantUsers(server, tenantId, contacts), calls, ["USER_ERASED"]);
  expect([...seen]).toEqual(["USER_ERASED"]);
  expect(await wrong(server, tenantId)).toBe(0n);
});
