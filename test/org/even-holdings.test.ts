import { type QuerySqlToken, sql } from "slonik";
import { expect, test } from "vitest";
import { selectDecisions } from "../../src/org/access.ts";
import { selectVisibilities } from "../../src/org/visibility-checks.ts";
import { indexesOf, planOf } from "../support/plans.ts";
import { startService } from "../support/service.ts";
import { plantWide } from "../support/wide-world.ts";

const COUNT = 3_000;

// Else who gets thousands later has all of them read, for each ancestor, until they are analysed.
test("where each user and node has one holding yet, they are looked up by both all the same", async () => {
  const server = await startService("grpc");
  const { tenantId, users, nodes, capability } = await plantWide(
    server,
    { nodes: COUNT, users: COUNT },
    Array.from({ length: COUNT }, (_, n) => ({ user: n, node: n, start: -60, end: null })),
  );
  for (const table of ["org_assignments", "visibility_grants"]) {
    // What was written lately is visible to all only after a VACUUM, and covering indexes are worth as much as others.
    await server.pool.query(sql.unsafe`UPDATE ${sql.identifier([table])} SET start_utc = start_utc`);
    await server.pool.query(sql.unsafe`ANALYZE ${sql.identifier([table])}`);
  }
  const pairs = Array.from({ length: 128 }, (_, n) => ({ tenantId, userId: users[n]!, nodeId: nodes[n * 20]! }));
  const statements: [QuerySqlToken, RegExp][] = [
    [selectDecisions(pairs.map((pair) => ({ ...pair, capability }))), /^idx_assign_(user_node|node_user)$/],
    ...(["read", "analyze"] as const).map((scope): [QuerySqlToken, RegExp] => [
      selectVisibilities(pairs.map((pair) => ({ ...pair, scope }))),
      /^idx_vis_(user_node|node_user|user_analyze)$/,
    ]),
  ];
  for (const [statement, byBoth] of statements) {
    const holdings = indexesOf(await planOf(server.pool, statement)).filter((name) => /^idx_(assign|vis)_/.test(name));
    expect(holdings.length).toBeGreaterThan(0);
    expect(holdings.filter((name) => !byBoth.test(name))).toEqual([]);
  }
});
