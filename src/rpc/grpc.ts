import { Server, type UntypedHandleCall } from "@grpc/grpc-js";
import type { Config } from "../config.ts";
import { TIMER_MAX_MS } from "../config-values.ts";
import { cutOffEnded } from "./ended-sockets.ts";
import { answerNoneGone } from "./gone-streams.ts";
import { createGrpcArrivals } from "./grpc-arrivals.ts";
import { createGrpcStream, createGrpcUnary } from "./grpc-calls.ts";
import { readEveryHeader } from "./grpc-headers.ts";
import { onHttp2Server, setHttp2Options } from "./http2-options.ts";
import { ANONYMOUS_MAX_BYTES, messageLimit } from "./message-limits.ts";
import type { Method } from "./methods.ts";
import type { Pipeline } from "./pipeline.ts";
import { endSilent } from "./silent-sessions.ts";

// A throw while grpc-js decodes would answer INTERNAL before the caller was seen: the pipeline decodes.
const asIs = (bytes: Buffer) => bytes;

const served = (pipeline: Pipeline, method: Method) =>
  method.type === "unary" ? createGrpcUnary(pipeline, method) : createGrpcStream(pipeline, method);

/** Serves the methods over native gRPC; health and reflection are added by others. */
export const createGrpcServer = (
  { grpc, messageMaxBytes, callTimeoutMs }: Config,
  pipeline: Pipeline,
  methods: readonly Method[],
): Server => {
  readEveryHeader();
  const byPath = new Map(
    methods.map((method) => [
      `/${method.name}`,
      { ...served(pipeline, method), type: method.type, maxBytes: messageLimit(method.rule, messageMaxBytes) },
    ]),
  );
  const server = new Server({
    interceptors: [createGrpcArrivals({ limitMs: callTimeoutMs, gates: byPath })],
    "grpc.max_concurrent_streams": grpc.maxConcurrentStreams,
    // Of health and reflection; a gate says how large its method's may be.
    "grpc.max_receive_message_length": Math.min(ANONYMOUS_MAX_BYTES, messageMaxBytes),
    // Behind a layer-4 balancer connections are balanced, not calls: old ones end so that new replicas get their share.
    // To which grpc-js adds a tenth at most, by chance.
    "grpc.max_connection_age_ms": Math.min(grpc.connectionAgeMs, 0.9 * TIMER_MAX_MS),
    "grpc.max_connection_age_grace_ms": grpc.connectionAgeGraceMs,
    "grpc.max_connection_idle_ms": grpc.connectionIdleMs,
  });
  setHttp2Options(server);
  onHttp2Server(server, (http2) => {
    cutOffEnded(http2);
    http2.on("session", (session) => endSilent(session, callTimeoutMs));
    answerNoneGone(http2);
  });
  for (const [path, { handle, type }] of byPath) {
    server.register(path, handle as UntypedHandleCall, asIs, asIs, type === "unary" ? "unary" : "serverStream");
  }
  return server;
};
