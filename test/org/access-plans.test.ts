import { type QuerySqlToken, sql } from "slonik";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { AccessScope } from "../../src/gen/org/v1/org_pb.ts";
import { selectDecisions } from "../../src/org/access.ts";
import { leastAfter } from "../../src/org/access-pages.ts";
import { selectNodesByCapability, selectNodesByScope } from "../../src/org/accessible-nodes.ts";
import { selectUsersByCapability, selectUsersByScope } from "../../src/org/users-with-access.ts";
import { selectVisibilities } from "../../src/org/visibility-checks.ts";
import { blocksReadOf, indexesOf, planOf, scannedOf } from "../support/plans.ts";
import { type TestService, startService } from "../support/service.ts";
import { type Holding, type WideWorld, parentOf, plantWide } from "../support/wide-world.ts";

const SIZE = { nodes: 10_000, users: 10_000 };
const LARGE = ["users", "org_nodes", "org_node_paths", "org_assignments", "visibility_grants"];

// Users of whom each has another kind of holdings; all others have something at the root, and nothing else.
const MUCH = 0;
const ENDED = 1;
const SCATTERED = 2;
const UNEVEN = 3;
const NESTED = 4;
const AT_ROOT = 5;
const KINDS = [MUCH, ENDED, SCATTERED, UNEVEN, NESTED, AT_ROOT];

const current = { start: -60, end: null };
const over = { start: -7_200, end: -3_600 };
const HOLDINGS: readonly Holding[] = [
  ...Array.from({ length: 5_500 }, (_, n) => ({ ...current, user: MUCH, node: SIZE.nodes - 1 - n })),
  ...Array.from({ length: 2_000 }, (_, n) => ({ ...over, user: ENDED, node: n % 4 })),
  ...Array.from({ length: 200 }, (_, n) => ({ ...current, user: SCATTERED, node: 40 * n + 1_001 })),
  ...Array.from({ length: 200 }, (_, n) => ({ ...current, user: UNEVEN, node: n === 0 ? 1 : 40 * n + 1_001 })),
  ...[0, 1, 11].map((node) => ({ ...current, user: NESTED, node })),
  ...Array.from({ length: SIZE.users - AT_ROOT }, (_, n) => ({ ...current, user: AT_ROOT + n, node: 0 })),
];

/** The places of all nodes that one of them can see, where all are open. */
const seenBy = (user: number) => {
  const own = new Set(HOLDINGS.filter((held) => held.user === user && held.end === null).map(({ node }) => node));
  const isSeen = (n: number): boolean => own.has(n) || (n > 0 && isSeen(parentOf(n)));
  return Array.from({ length: SIZE.nodes }, (_, n) => n).filter(isSeen);
};

/** The places of all users who can see a node, where all are open. */
const seersOf = (node: number) => {
  const line = new Set<number>();
  for (let n = node; n >= 0; n = parentOf(n)) line.add(n);
  return [...new Set(HOLDINGS.filter((held) => held.end === null && line.has(held.node)).map(({ user }) => user))];
};

describe("where one user has something nearly everywhere, and most users something on one node", () => {
  let server: TestService;
  let world: WideWorld;
  beforeAll(async () => {
    server = await startService("grpc");
    // Another tenant's nodes stand between this one's, by their ids.
    await plantWide(server, { nodes: 1_000, users: 1 }, []);
    world = await plantWide(server, SIZE, HOLDINGS);
  });

  const blocksOf = async (statement: QuerySqlToken) => blocksReadOf(await planOf(server.pool, statement));

  test("checks read what users hold by its covering indexes, and no table from end to end", async () => {
    const { tenantId, users, nodes, capability } = world;
    const pairs = Array.from({ length: 128 }, (_, n) => {
      return { tenantId, userId: users[n % 2 === 0 ? n % 8 : n * 50]!, nodeId: nodes[n * 75]! };
    });
    const statements: [QuerySqlToken, RegExp][] = [
      [selectDecisions(pairs.map((pair) => ({ ...pair, capability }))), /^idx_assign_(user_node|node_user)$/],
      ...(["read", "analyze"] as const).map((scope): [QuerySqlToken, RegExp] => [
        selectVisibilities(pairs.map((pair) => ({ ...pair, scope }))),
        /^idx_vis_(user_node|node_user|user_analyze)$/,
      ]),
    ];
    for (const [statement, covering] of statements) {
      const plan = await planOf(server.pool, statement);
      const indexes = indexesOf(plan);
      const holdings = indexes.filter((index) => /^(idx_(assign|vis)_|org_assignments|visibility_grants)/.test(index));
      expect(holdings.filter((index) => !covering.test(index))).toEqual([]);
      expect(indexes).toContain("idx_org_nodes_inactive");
      expect(scannedOf(plan).filter((table) => LARGE.includes(table))).toEqual([]);
      // A check has five nodes above it, and looks each up in two indexes of two or three levels.
      expect(blocksReadOf(plan)).toBeLessThan(128 * 50);
    }
  });

  const accesses = () =>
    [
      { case: "capability", value: world.capability },
      { case: "scope", value: AccessScope.READ },
    ] as const;

  /** All ids of a list, and on how many pages they came. */
  const wholeList = async (
    pageAt: (pageToken: string) => Promise<{ readonly ids: readonly string[]; readonly nextPageToken: string }>,
  ) => {
    const found: string[] = [];
    let pages = 0;
    let pageToken = "";
    do {
      const page = await pageAt(pageToken);
      found.push(...page.ids);
      pageToken = page.nextPageToken;
      pages++;
    } while (pageToken !== "");
    return { found, pages };
  };

  test.each(KINDS)("all that user %i sees is listed, on few pages", async (user) => {
    const { tenantId, users, nodes } = world;
    for (const access of accesses()) {
      const { found, pages } = await wholeList(async (pageToken) => {
        const request = { tenantId, userId: users[user]!, access, pageSize: 1_000, pageToken };
        const page = await server.org.listAccessibleNodes(request);
        return { ids: page.nodes.map(({ nodeId }) => nodeId), nextPageToken: page.nextPageToken };
      });
      const seen = seenBy(user);
      expect(found).toEqual(seen.map((n) => nodes[n]).sort());
      // Each is full, or has looked at 2,000 nodes, or is the last.
      expect(pages).toBeLessThanOrEqual(seen.length / 1_000 + SIZE.nodes / 2_000 + 1);
    }
  });

  // What ended below the root is a stream of its own, which the first of them has to wait for.
  test.each([0, 1_111, SIZE.nodes - 1])("all who see node %i are listed, each once", async (node) => {
    const { tenantId, users, nodes } = world;
    for (const access of accesses()) {
      const { found } = await wholeList(async (pageToken) => {
        const request = { tenantId, nodeId: nodes[node]!, access, pageSize: 1_000, pageToken };
        const page = await server.org.listUsersWithAccess(request);
        return { ids: page.users.map(({ userId }) => userId), nextPageToken: page.nextPageToken };
      });
      expect(found).toEqual(
        seersOf(node)
          .map((n) => users[n])
          .sort(),
      );
    }
  });

  const setBelowRoot = async (active: boolean) => {
    await server.pool.query(sql.unsafe`
      UPDATE org_nodes SET active_flag = ${active}
      WHERE tenant_id = ${world.tenantId}::uuid AND parent_org_node_id IS NOT NULL`);
    await server.pool.query(sql.unsafe`VACUUM (ANALYZE) org_nodes`);
  };

  test("a page of a list costs the same wherever it begins, whoever asks and whatever is inactive", async () => {
    const { tenantId, users, nodes, capability } = world;
    const statements = [leastAfter(undefined), "80000000-0000-0000-0000-000000000000"].flatMap((from) => [
      ...KINDS.flatMap((user) => {
        const asked = { tenantId, userId: users[user]!, from, limit: 51 };
        return [
          selectNodesByCapability({ ...asked, access: capability }),
          selectNodesByScope({ ...asked, access: "read" }),
        ];
      }),
      ...[0, 1, SIZE.nodes - 1].flatMap((n) => {
        const asked = { tenantId, nodeId: nodes[n]!, from, limit: 51 };
        return [
          selectUsersByCapability({ ...asked, access: capability }),
          selectUsersByScope({ ...asked, access: "read" }),
        ];
      }),
    ]);
    // 2,000 candidates at most, each looked up as a check does.
    const most = 20_000;
    for (const statement of statements) expect(await blocksOf(statement)).toBeLessThan(most);
    onTestFinished(() => setBelowRoot(true));
    await setBelowRoot(false);
    for (const statement of statements) expect(await blocksOf(statement)).toBeLessThan(most);
  });
});
