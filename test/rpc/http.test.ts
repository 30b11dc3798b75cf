import { createServer } from "node:http";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { createSideRoutes } from "../../src/rpc/http.ts";
import { addGauge, createMetrics } from "../../src/rpc/metrics.ts";
import { type TestDatabase, createDatabase } from "../support/database.ts";
import { loggedLines } from "../support/logged-lines.ts";
import { listenOn } from "../support/ports.ts";
import { serve } from "../support/serve.ts";

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database.drop());

test("what the HTTP port does not have is not found", async () => {
  const { httpPort, stop } = await serve(database.url);
  onTestFinished(stop);
  for (const path of ["/", "/metrics/all", "/healthz/", "/.well-known/"]) {
    const response = await fetch(`http://127.0.0.1:${httpPort}${path}`);
    expect([response.status, await response.text()]).toEqual([404, "not found\n"]);
  }
});

test("HTTP_PORT=0 opens no port for HTTP", async () => {
  const { httpPort, stop } = await serve(database.url, { HTTP_PORT: "0" });
  onTestFinished(stop);
  expect(httpPort).toBeUndefined();
});

test("a metric that cannot be read is told to the scrape, and its reason to the log alone", async () => {
  const metrics = createMetrics("test");
  addGauge(metrics.registry, "broken", "Fails.", () => {
    throw new Error("no such gauge");
  });
  const { log, all } = loggedLines();
  const routes = createSideRoutes({ metrics, isReady: () => true, jwks: () => "{}", log });
  const server = createServer((request, response) => routes(request, response));
  onTestFinished(() => void server.close());
  const response = await fetch(`http://127.0.0.1:${await listenOn(server)}/metrics`);
  expect([response.status, await response.text()]).toEqual([500, "metrics cannot be gathered\n"]);
  expect(all).toMatchObject([{ level: "error", err: { message: "no such gauge" } }]);
});
