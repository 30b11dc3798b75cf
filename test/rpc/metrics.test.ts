import { Code } from "@connectrpc/connect";
import { expect, test } from "vitest";
import { createMetrics } from "../../src/rpc/metrics.ts";

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
