import { execFile } from "node:child_process";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { afterEach, expect, inject, onTestFinished, test, vi } from "vitest";
import { OrgService } from "../src/gen/org/v1/org_pb.ts";
import { createDatabase, createRootedDatabase } from "./support/database.ts";
import { refused } from "./support/refusals.ts";
import { serve } from "./support/serve.ts";
import { clientsOf } from "./support/service.ts";
import {
  CALL,
  CLIENT,
  PARENT,
  SERVER,
  TRACE,
  call,
  ok,
  plain,
  startCollector,
  started,
} from "./support/trace-collector.ts";
import { listenOn } from "./support/ports.ts";

afterEach(() => void vi.unstubAllEnvs());

test("a call is a server span below its caller's, and its statement a span below the call's", async () => {
  const collector = await startCollector();
  vi.stubEnv("OTEL_NODE_EXPERIMENTAL_SDK_METRICS", "true");
  const tracing = await started();
  let during: string | undefined;
  const handle = async () => {
    during = tracing.traceId();
    return tracing.database("transact", () => tracing.database("selectDecisions", async () => "allowed"));
  };
  const caller = call({ traceparent: `00-${TRACE}-${PARENT}-01` });
  expect(await tracing.run(caller, handle, ok)).toBe("allowed");
  expect(during).toBe(TRACE);
  expect(tracing.traceId()).toBeUndefined();
  await tracing.shutdown();

  expect(collector.received).toMatchObject([{ url: "/v1/traces" }]);
  const server = collector.spans().find(({ kind }) => kind === SERVER)!;
  expect(server).toMatchObject({ name: CALL, traceId: TRACE, parentSpanId: PARENT });
  expect(plain(server.attributes)).toEqual({ "rpc.system.name": "grpc", "rpc.method": CALL, "rpc.status_code": "OK" });
  const [statement, transaction] = collector.spans().filter(({ kind }) => kind === CLIENT);
  expect(transaction).toMatchObject({ name: "transact", traceId: TRACE, parentSpanId: server.spanId });
  expect(statement).toMatchObject({ name: "selectDecisions", traceId: TRACE, parentSpanId: transaction!.spanId });
  expect(plain(statement!.attributes)).toEqual({
    "db.system.name": "postgresql",
    "db.query.summary": "selectDecisions",
  });
});

test("calls at once do not mix, and one without a caller's trace begins its own", async () => {
  const collector = await startCollector();
  const tracing = await started();
  const one = async () => {
    await new Promise(setImmediate);
    await tracing.database("selectNode", () => new Promise(setImmediate));
  };
  await Promise.all(Array.from({ length: 20 }, () => tracing.run(call(), one, ok)));
  await tracing.shutdown();

  const servers = collector.spans().filter(({ kind }) => kind === SERVER);
  const statements = collector.spans().filter(({ kind }) => kind === CLIENT);
  expect(new Set(servers.map(({ traceId }) => traceId)).size).toBe(20);
  expect(servers.map(({ parentSpanId }) => parentSpanId ?? "")).toEqual(Array(20).fill(""));
  const above = servers.map(({ traceId, spanId }) => `${traceId} ${spanId}`);
  expect(statements.map(({ traceId, parentSpanId }) => `${traceId} ${parentSpanId}`).sort()).toEqual(above.sort());
});

test("a statement outside of any call is no trace", async () => {
  const collector = await startCollector();
  const tracing = await started();
  expect(await tracing.database("selectOne", async () => 1)).toBe(1);
  await tracing.shutdown();
  expect(collector.received).toEqual([]);
});

test("the standard variables are honoured", async () => {
  const collector = await startCollector();
  vi.stubEnv("OTEL_SERVICE_NAME", "auth-eu");
  vi.stubEnv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging");
  vi.stubEnv("OTEL_TRACES_SAMPLER", "parentbased_always_off");
  const tracing = await started();
  await tracing.run(call(), async () => undefined, ok);
  await tracing.run(call({ traceparent: `00-${TRACE}-${PARENT}-01` }), async () => undefined, ok);
  await tracing.shutdown();
  expect(collector.spans()).toMatchObject([{ traceId: TRACE }]);
  expect(collector.resource()).toMatchObject({ "service.name": "auth-eu", "deployment.environment.name": "staging" });
});

test("without a variable the spans go as protobuf, in this service's name", async () => {
  const collector = await startCollector();
  vi.stubEnv("OTEL_EXPORTER_OTLP_PROTOCOL", undefined);
  const tracing = await started();
  await tracing.run(call(), async () => undefined, ok);
  await tracing.shutdown();
  expect(collector.received).toMatchObject([{ type: "application/x-protobuf" }]);
  expect(String(collector.received[0]!.body)).toContain(CALL);
  expect(String(collector.received[0]!.body)).toContain("auth-service");
});

test("a collector that is away is logged, and fails neither a call nor the shutdown", async () => {
  vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
  vi.stubEnv("OTEL_EXPORTER_OTLP_TIMEOUT", "200");
  vi.stubEnv("OTEL_BSP_SCHEDULE_DELAY", "1");
  const { promise: logged, resolve: warn } = Promise.withResolvers<object>();
  const tracing = await started({ warn });
  expect(await tracing.run(call(), async () => "answer", ok)).toBe("answer");
  expect(JSON.stringify(await logged)).toContain("ECONNREFUSED");
  await tracing.shutdown();
});

test("a collector that never answers holds the shutdown no longer than it may", async () => {
  const lines: object[] = [];
  const server = createServer(() => {});
  onTestFinished(() => server.closeAllConnections());
  onTestFinished(() => void server.close());
  vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", `http://127.0.0.1:${await listenOn(server)}`);
  const tracing = await started({ warn: (fields) => void lines.push(fields) });
  await tracing.run(call(), async () => undefined, ok);
  await tracing.shutdown(20);
  await tracing.shutdown();
  expect(lines).toEqual([{ reason: "Error: no answer" }]);
});

test("a server's spans say by which protocol their calls came", async () => {
  const collector = await startCollector();
  const database = await createDatabase();
  onTestFinished(() => database.drop());
  const server = await serve(database.url, { OTEL_TRACES_EXPORTER: "otlp" });
  const http = { baseUrl: `http://127.0.0.1:${server.httpPort}`, httpVersion: "1.1" } as const;
  const transports = [
    createGrpcTransport({ baseUrl: `http://127.0.0.1:${server.grpcPort}` }),
    createConnectTransport(http),
    createGrpcWebTransport(http),
  ];
  const headers = { traceparent: `00-${TRACE}-${PARENT}-01` };
  for (const transport of transports) await refused(createClient(OrgService, transport).listTenants({}, { headers }));
  await server.stop();
  const calls = collector.spans().filter(({ parentSpanId }) => parentSpanId === PARENT);
  const systems = calls.map(({ attributes }) => plain(attributes)["rpc.system.name"]);
  expect(systems).toEqual(["grpc", "connectrpc", "grpc"]);
});

test("what a call asks the database is in spans below it, by name or table, without values", async () => {
  const collector = await startCollector();
  const database = await createRootedDatabase();
  onTestFinished(() => database.drop());
  const server = await serve(database.url, { OTEL_TRACES_EXPORTER: "otlp" });
  const traced = { traceparent: `00-${TRACE}-${PARENT}-01` };
  const connect = clientsOf("grpc", server);
  const signIn = { key: "root", secret: inject("rootSecret") };
  const { serviceToken } = await connect({}).services.authenticateService(signIn);
  const { services } = connect({ ...traced, authorization: `Bearer ${serviceToken}` });
  await services.registerService({ key: "svc-of-test", label: "Of test" });
  await server.stop();

  const spans = collector.spans().filter(({ traceId }) => traceId === TRACE);
  const call = spans.find(({ kind }) => kind === SERVER)!;
  const uses = spans.filter(({ name, parentSpanId }) => name === "use" && parentSpanId === call.spanId);
  const above = new Set(uses.map(({ spanId }) => spanId));
  const statements = spans.filter(({ parentSpanId }) => above.has(parentSpanId ?? ""));
  expect(statements.map(({ name }) => name)).toEqual(
    expect.arrayContaining(["select-service-token", "INSERT services", "SELECT services", "insert-events", "COMMIT"]),
  );
  for (const { name, kind, attributes } of statements) {
    expect(kind).toBe(CLIENT);
    expect(plain(attributes)).toEqual({ "db.system.name": "postgresql", "db.query.summary": name });
  }
  expect(collector.received.map(({ body }) => String(body)).join()).not.toContain("svc-of-test");
});

/** Which OpenTelemetry modules a fresh process has loaded once tracing was started. */
async function loadedWhen(enabled: boolean): Promise<string[]> {
  const script = `
    import { registerHooks } from "node:module";
    const loaded = [];
    registerHooks({ load: (url, context, next) => (loaded.push(url), next(url, context)) });
    const { startTracing } = await import(${JSON.stringify(new URL("../src/tracing.ts", import.meta.url))});
    const tracing = await startTracing(${enabled});
    console.log(JSON.stringify([tracing === undefined, ...loaded.filter((url) => url.includes("@opentelemetry"))]));
    await tracing?.shutdown();`;
  const cwd = fileURLToPath(new URL("..", import.meta.url));
  const env = { ...process.env, OTEL_TRACES_EXPORTER: "console" };
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", script], { cwd, env });
  const [off, ...urls] = JSON.parse(stdout) as [boolean, ...string[]];
  expect(off).toBe(!enabled);
  return urls;
}

test("when off, nothing of OpenTelemetry is loaded", { timeout: 20_000 }, async () => {
  expect(await loadedWhen(false)).toEqual([]);
  expect((await loadedWhen(true)).some((url) => url.includes("/sdk-node/"))).toBe(true);
});
