import type { Client } from "pg";
import { type AccessWorld, READER, worldId } from "./access-world.ts";
import { type BenchService, median } from "./service.ts";

const PAGE = 50;
const FAR = 1_000;
/** Pages that are timed, from the first and from the thousandth on. */
const TIMED = 20;

interface Page {
  readonly nextPageToken: string;
}

/** The median milliseconds of the first pages, and of those after the thousandth. */
const timePages = async (page: (pageToken: string) => Promise<Page>) => {
  const milliseconds: number[] = [];
  let pageToken = "";
  for (let count = 0; count < FAR + TIMED; count++) {
    const started = performance.now();
    ({ nextPageToken: pageToken } = await page(pageToken));
    milliseconds.push(performance.now() - started);
    if (pageToken === "") break;
  }
  const far = milliseconds.slice(FAR);
  return {
    "first pages, ms": median(milliseconds.slice(0, TIMED)).toFixed(2),
    "after the thousandth, ms": far.length > 0 ? median(far).toFixed(2) : `only ${milliseconds.length} pages`,
    "slowest page, ms": Math.max(...milliseconds).toFixed(2),
  };
};

/** What the first and the thousandth page of who may do what where cost, whatever is inactive. Target: the same. */
export const benchAccessPages = async (service: BenchService, client: Client, world: AccessWorld): Promise<void> => {
  const tenantId = worldId(world, "tenant", 0);
  const access = { case: "capability", value: READER } as const;
  const nodes = (pageToken: string) =>
    service.org.listAccessibleNodes({
      tenantId,
      userId: worldId(world, "user", 1),
      access,
      pageSize: PAGE,
      pageToken,
    });
  const users = (pageToken: string) =>
    service.org.listUsersWithAccess({
      tenantId,
      nodeId: worldId(world, "node", 1),
      access,
      pageSize: PAGE,
      pageToken,
    });
  const rows = {
    "ListAccessibleNodes, of a million": await timePages(nodes),
    "ListUsersWithAccess, of 100,000": await timePages(users),
  };
  await client.query("UPDATE org_nodes SET active_flag = false WHERE tenant_id = $1 AND node_label NOT LIKE '%00'", [
    tenantId,
  ]);
  await client.query("UPDATE org_nodes SET active_flag = true WHERE org_node_id <= $1 AND tenant_id = $2", [
    worldId(world, "node", 11_110),
    tenantId,
  ]);
  await client.query(
    "UPDATE users SET user_state_code = 'inactive' WHERE tenant_id = $1 AND display_label NOT LIKE '%00'",
    [tenantId],
  );
  await client.query("VACUUM (ANALYZE)");
  console.table({
    ...rows,
    "ListAccessibleNodes, most inactive": await timePages(nodes),
    "ListUsersWithAccess, most inactive": await timePages(users),
  });
};
