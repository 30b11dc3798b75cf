import { type DescService, type Message, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  Metadata,
  type MethodDefinition,
  Server,
  type ServerUnaryCall,
  type ServiceDefinition,
  type sendUnaryData,
} from "@grpc/grpc-js";
import type { Config } from "../config.ts";
import type { HeaderReader } from "./caller.ts";
import { type Failure, statusBinary } from "./failure.ts";
import type { Method } from "./methods.ts";
import type { Pipeline } from "./pipeline.ts";

type Bytes = Uint8Array;
type RawCall = ServerUnaryCall<Buffer, Buffer>;

// A throw while grpc-js decodes would answer INTERNAL before the caller was seen: the pipeline decodes.
const asIs = (bytes: Buffer) => bytes;

/** The definition that grpc-js serves a protobuf-es service by. */
const definitionOf = (service: DescService): ServiceDefinition =>
  Object.fromEntries(
    service.methods.map((method): [string, MethodDefinition<Buffer, Buffer>] => [
      method.name,
      {
        path: `/${service.typeName}/${method.name}`,
        requestStream: false,
        responseStream: false,
        requestSerialize: asIs,
        requestDeserialize: asIs,
        responseSerialize: asIs,
        responseDeserialize: asIs,
      },
    ]),
  );

const headersOf =
  (metadata: Metadata): HeaderReader =>
  (name) => {
    const value = metadata.get(name)[0];
    return typeof value === "string" ? value : undefined;
  };

const timeoutOf = (raw: RawCall) => {
  const deadline = raw.getDeadline();
  return deadline === Infinity ? undefined : Number(deadline) - Date.now();
};

const asBuffer = (bytes: Bytes) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

const failWith = (callback: sendUnaryData<Buffer>, failure: Failure, requestId: string) => {
  const metadata = new Metadata();
  metadata.set("x-request-id", requestId);
  metadata.set("grpc-status-details-bin", asBuffer(statusBinary(failure)));
  const status: { code: number; details: string; metadata: Metadata } = {
    code: failure.code,
    details: failure.message,
    metadata,
  };
  callback(status);
};

const handlerOf = (pipeline: Pipeline, method: Method) => (raw: RawCall, callback: sendUnaryData<Buffer>) => {
  const header = headersOf(raw.metadata);
  const call = pipeline.receive(header, timeoutOf(raw));
  raw.on("cancelled", () => call.end("CANCELLED"));
  const exchange = {
    header,
    decode: () => fromBinary(method.desc.input, raw.request),
    encode: (message: Message) => asBuffer(toBinary(method.desc.output, message)),
  };
  void pipeline.answer(method, call, exchange).then((answer) => {
    if ("failure" in answer) return failWith(callback, answer.failure, call.requestId);
    const metadata = new Metadata();
    metadata.set("x-request-id", call.requestId);
    raw.sendMetadata(metadata);
    callback(null, answer.encoded);
  });
};

/** Serves the methods over native gRPC; health and reflection are added by others. */
export const createGrpcServer = (
  { grpc, messageMaxBytes }: Config,
  pipeline: Pipeline,
  methods: readonly Method[],
): Server => {
  const server = new Server({
    "grpc.max_concurrent_streams": grpc.maxConcurrentStreams,
    "grpc.max_receive_message_length": messageMaxBytes,
    // Behind a layer-4 balancer connections are balanced, not calls: old ones end so that new replicas get their share.
    "grpc.max_connection_age_ms": grpc.connectionAgeMs,
    "grpc.max_connection_age_grace_ms": grpc.connectionAgeGraceMs,
    "grpc.max_connection_idle_ms": grpc.connectionIdleMs,
  });
  for (const service of new Set(methods.map(({ desc }) => desc.parent))) {
    const own = methods.filter(({ desc }) => desc.parent === service);
    const handlers = own.map((method) => [method.desc.name, handlerOf(pipeline, method)] as const);
    server.addService(definitionOf(service), Object.fromEntries(handlers));
  }
  return server;
};
