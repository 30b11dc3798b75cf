import { createServer } from "node:http";
import { buffer } from "node:stream/consumers";
import { status } from "@grpc/grpc-js";
import { onTestFinished, vi } from "vitest";
import { startTracing, type TracedCall } from "../../src/tracing.ts";
import { listenOn } from "./ports.ts";

export const CALL = "org.v1.OrgService/CheckAccess";
/** What a caller hands on. */
export const TRACE = "0af7651916cd43dd8448eb211c80319c";
export const PARENT = "b7ad6b7169203331";
/** Kinds of a span, and the status of one that failed. */
export const SERVER = 2;
export const CLIENT = 3;
export const ERROR = 2;

type Value = { stringValue?: string; intValue?: number };
type Attributes = { key: string; value: Value }[];
type Span = {
  name: string;
  kind: number;
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  attributes: Attributes;
  status: { code?: number; message?: string };
};
type Export = { resourceSpans: { resource: { attributes: Attributes }; scopeSpans: { spans: Span[] }[] }[] };
type Received = { url: string | undefined; type: string | undefined; body: Buffer };

export const plain = (attributes: Attributes) =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, value.stringValue]));

/** What a collector is: it takes what is posted to /v1/traces. */
export async function startCollector() {
  const received: Received[] = [];
  const server = createServer((request, response) => {
    void buffer(request).then((body) => {
      received.push({ url: request.url, type: request.headers["content-type"], body });
      response.end("{}");
    });
  });
  onTestFinished(() => void server.close());
  vi.stubEnv("OTEL_EXPORTER_OTLP_ENDPOINT", `http://127.0.0.1:${await listenOn(server)}`);
  vi.stubEnv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
  const exported = () => received.flatMap(({ body }) => (JSON.parse(String(body)) as Export).resourceSpans);
  return {
    received,
    spans: () => exported().flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans)),
    resource: () => plain(exported()[0]!.resource.attributes),
  };
}

/** Tracing that ends with the test. */
export async function started(log?: Parameters<typeof startTracing>[1]) {
  const tracing = await startTracing(true, log);
  if (!tracing) throw new Error("tracing is off");
  onTestFinished(() => tracing.shutdown());
  return tracing;
}

export const call = (headers: Record<string, string> = {}): TracedCall => ({
  name: CALL,
  header: (name) => headers[name],
  system: "grpc",
});
export const ok = () => status.OK;
