import { readFile } from "node:fs/promises";
import { Code } from "@connectrpc/connect";
import { expect, test } from "vitest";
import { createMetrics } from "../../src/rpc/metrics.ts";
import { startService } from "../support/service.ts";

const { version: VERSION } = JSON.parse(await readFile(new URL("../../package.json", import.meta.url), "utf8")) as {
  readonly version: string;
};

test("calls stand in each bucket that they were fast enough for, by method and code, however often it is looked", async () => {
  const { registry, meter } = createMetrics("1.2.3");
  const count = meter("unary", "org.v1.OrgService", "GetNode");
  for (const seconds of [0.003, 0.25, 0.3]) count(0, seconds);
  count(Code.NotFound, 40);
  await registry.metrics();
  const text = await registry.metrics();
  const labels = (code: string) =>
    `grpc_type="unary",grpc_service="org.v1.OrgService",grpc_method="GetNode",grpc_code="${code}"`;
  const of = (name: string, code: string, le?: string) => {
    const start = `grpc_server_${name}{${le === undefined ? "" : `le="${le}",`}${labels(code)}} `;
    return text.split("\n").flatMap((line) => (line.startsWith(start) ? [Number(line.slice(start.length))] : []));
  };
  const bounds = ["0.0025", "0.005", "0.1", "0.25", "0.5", "30", "+Inf"];
  const buckets = (code: string) => bounds.flatMap((le) => of("handling_seconds_bucket", code, le));
  expect(buckets("OK")).toEqual([0, 1, 1, 2, 3, 3, 3]);
  expect(buckets("NotFound")).toEqual([0, 0, 0, 0, 0, 0, 1]);
  expect(of("handling_seconds_sum", "OK")[0]).toBeCloseTo(0.553);
  expect([of("handling_seconds_count", "OK"), of("handled_total", "OK")]).toEqual([[3], [3]]);
  expect(of("handled_total", "NotFound")).toEqual([1]);
});

test("a server tells how its pool, its database and its event loop do, and what runs", async () => {
  const { org, httpPort } = await startService("grpc");
  await org.listTenants({});
  const text = await (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text();
  const of = (name: string) => Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1]);
  expect(of("database_pool_wait_seconds_count")).toBeGreaterThan(0);
  expect(of("database_pool_connections_in_use")).toBeGreaterThanOrEqual(0);
  expect(of("database_pool_waiting")).toBe(0);
  expect(of("password_hash_queue_length")).toBe(0);
  expect(of("database_healthy")).toBe(1);
  expect(of("nodejs_eventloop_lag_seconds")).toBeGreaterThanOrEqual(0);
  expect(of("process_resident_memory_bytes")).toBeGreaterThan(0);
  expect(text).toContain(`\nbuild_info{version="${VERSION}",node="${process.version}"} 1\n`);
});

test("the pool, the passwords' queue and health are told as they are when it is looked", async () => {
  const { registry, watchPool, watchPasswordQueue, observePoolWait, setHealthy } = createMetrics("1.2.3");
  const load = { inside: 3, waiting: 0 };
  watchPool(() => load);
  watchPasswordQueue(() => 5);
  const lines = async () => (await registry.metrics()).split("\n");
  setHealthy(true);
  observePoolWait(0.2);
  expect(await lines()).toEqual(
    expect.arrayContaining([
      "database_pool_connections_in_use 3",
      "database_pool_waiting 0",
      "password_hash_queue_length 5",
      'database_pool_wait_seconds_bucket{le="0.1"} 0',
      'database_pool_wait_seconds_bucket{le="0.25"} 1',
      "database_healthy 1",
      `build_info{version="1.2.3",node="${process.version}"} 1`,
    ]),
  );
  load.waiting = 7;
  setHealthy(false);
  expect(await lines()).toEqual(expect.arrayContaining(["database_pool_waiting 7", "database_healthy 0"]));
});
