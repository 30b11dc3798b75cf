import { Code } from "@connectrpc/connect";
import type { Tracing } from "../tracing.ts";
import type { Call } from "./call.ts";
import type { Failure } from "./failure.ts";
import type { Method } from "./methods.ts";
import { codeName } from "./metrics.ts";

/** A call that is over. */
export interface Ended {
  readonly method: Method;
  readonly call: Call;
  /** By `performance.now()`. */
  readonly startedAt: number;
  /** Undefined where it was answered. */
  readonly failure?: Failure | undefined;
  readonly error?: unknown;
  /** How many messages a stream had. */
  readonly messages?: number;
  /** Where the call's span is over already. */
  readonly traceId?: string | undefined;
}

/** What is kept of each call: one log line, and its place in the metrics. */
export const createRecorder =
  (tracing: Tracing | undefined) =>
  ({ method, call, startedAt, failure, error, messages, traceId = tracing?.traceId() }: Ended): void => {
    const milliseconds = performance.now() - startedAt;
    const code = failure?.code ?? 0;
    method.meter(code, milliseconds / 1_000);
    const line = {
      request_id: call.requestId,
      code: codeName(code),
      reason: failure?.reason,
      service: call.callerIfAny?.key,
      actor_user_id: call.actor?.userId,
      trace_id: traceId,
      ms: Math.round(milliseconds * 100) / 100,
      messages,
    };
    if (code === Code.Internal) method.log.error({ ...line, err: error }, "call failed");
    else if (code === Code.Unavailable && failure?.reason !== "STREAM_ENDED")
      method.log.warn({ ...line, err: (error as Error).cause }, "call unavailable");
    else method.log.info(line, "call");
  };
