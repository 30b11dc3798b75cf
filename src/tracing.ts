import { status } from "@grpc/grpc-js";
import type { Attributes, Span } from "@opentelemetry/api";
import { sqlStateOf } from "./db/sql-state.ts";
import { endedWithin } from "./timers.ts";

/** The protocol that a call came by, as OpenTelemetry names it. */
export type RpcSystem = "grpc" | "connectrpc";

export interface TracedCall {
  /** `package.Service/Method`, as declared, never as a caller spelt it: it becomes the span's name. */
  readonly name: string;
  readonly header: (name: string) => string | undefined;
  readonly system: RpcSystem;
}

export interface Tracing {
  /** Runs a call in a server span below its caller's; `codeOf` reads the gRPC code off the answer. */
  run<Answer>(call: TracedCall, handle: () => Promise<Answer>, codeOf: (answer: Answer) => number): Promise<Answer>;
  /** Runs a use of the database, or a statement of it, in a span of its own, where a call is being traced. */
  database<T>(summary: string, work: () => Promise<T>): Promise<T>;
  /** Of the call under way, for its log line. */
  traceId(): string | undefined;
  /** Sends what is not yet sent, and ends. Never throws: a collector that is away must not fail a shutdown. */
  shutdown(limitMs?: number): Promise<void>;
}

interface TracingLog {
  warn(fields: object, message: string): void;
}

// Written out, since @opentelemetry/semantic-conventions (these are of 1.45) is 10 MB, and not loaded when off.
const RPC_SYSTEM = "rpc.system.name";
const RPC_METHOD = "rpc.method";
const RPC_STATUS = "rpc.status_code";
const DB_SYSTEM = "db.system.name";
const DB_SUMMARY = "db.query.summary";
const DB_STATUS = "db.response.status_code";
const ERROR_TYPE = "error.type";

// Of a server's span only these are errors by the conventions: a refusal is an answer, and the caller's fault.
const FAULTS = new Set<number>([
  status.UNKNOWN,
  status.DEADLINE_EXCEEDED,
  status.UNIMPLEMENTED,
  status.INTERNAL,
  status.UNAVAILABLE,
  status.DATA_LOSS,
]);

/** A message is left out: PostgreSQL quotes values in it. */
const databaseFault = (error: unknown): Attributes => {
  if (!(error instanceof Error)) return { [ERROR_TYPE]: typeof error };
  const state = sqlStateOf(error);
  if (state !== undefined) return { [ERROR_TYPE]: state, [DB_STATUS]: state };
  return { [ERROR_TYPE]: error.constructor.name };
};

/** Behind SHUTDOWN_DELAY and SHUTDOWN_GRACE it ends before the 30 s are over after which Kubernetes kills. */
const SHUTDOWN_MS = 3_000;

/**
 * Undefined when off: then neither the SDK nor the API is loaded, and a call pays for one comparison.
 * When on, the SDK reads the standard OTEL_* variables by itself.
 */
export const startTracing = async (enabled: boolean, log?: TracingLog): Promise<Tracing | undefined> => {
  if (!enabled) return undefined;
  const [api, { defaultResource, resourceFromAttributes }, { NodeSDK }] = await Promise.all([
    import("@opentelemetry/api"),
    import("@opentelemetry/resources"),
    import("@opentelemetry/sdk-node"),
  ]);
  const { context, diag, DiagLogLevel, propagation, ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } = api;

  if (log) {
    const warn = (reason: string) => log.warn({ reason }, "tracing");
    const ignore = () => {};
    const logger = { error: warn, warn, info: ignore, debug: ignore, verbose: ignore };
    diag.setLogger(logger, { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true });
  }
  // The name is given as a resource, since `serviceName` would win over OTEL_SERVICE_NAME; and unless told so the SDK
  // would also send logs, and metrics, which have their own way out.
  const resource = defaultResource().merge(resourceFromAttributes({ "service.name": "auth-service" }));
  const sdk = new NodeSDK({ resource, metricReaders: [], logRecordProcessors: [], instrumentations: [] });
  sdk.start();
  const tracer = trace.getTracer("auth-service");
  const getter = { get: (header: TracedCall["header"], name: string) => header(name), keys: () => [] };

  const fail = (span: Span, attributes: Attributes) => {
    span.setAttributes(attributes);
    span.setStatus({ code: SpanStatusCode.ERROR });
  };

  let ended: Promise<void> | undefined;
  const end = async (limitMs: number) => {
    // A collector that takes and does not answer would hold it for 10 s, by the exporter's own limit.
    try {
      if (!(await endedWithin(limitMs, sdk.shutdown()))) throw new Error("no answer");
    } catch (error) {
      log?.warn({ reason: String(error) }, "tracing: the last spans were not sent");
    }
    for (const global of [trace, context, propagation, api.logs, diag]) global.disable();
  };

  return {
    async run({ name, header, system }, handle, codeOf) {
      const parent = propagation.extract(ROOT_CONTEXT, header, getter);
      const attributes = { [RPC_SYSTEM]: system, [RPC_METHOD]: name };
      const span = tracer.startSpan(name, { kind: SpanKind.SERVER, attributes }, parent);
      let code: number = status.INTERNAL;
      try {
        const answer = await context.with(trace.setSpan(parent, span), handle);
        code = codeOf(answer);
        return answer;
      } finally {
        const codeName = status[code] ?? String(code);
        span.setAttribute(RPC_STATUS, codeName);
        if (FAULTS.has(code)) fail(span, { [ERROR_TYPE]: codeName });
        span.end();
      }
    },
    async database(summary, work) {
      // Health, purge and delivery ask the database without a call: each would be a trace of its own every second.
      if (!trace.getActiveSpan()) return work();
      const attributes = { [DB_SYSTEM]: "postgresql", [DB_SUMMARY]: summary };
      const span = tracer.startSpan(summary, { kind: SpanKind.CLIENT, attributes });
      try {
        return await context.with(trace.setSpan(context.active(), span), work);
      } catch (error) {
        fail(span, databaseFault(error));
        throw error;
      } finally {
        span.end();
      }
    },
    traceId: () => trace.getActiveSpan()?.spanContext().traceId,
    shutdown: (limitMs = SHUTDOWN_MS) => (ended ??= end(limitMs)),
  };
};
