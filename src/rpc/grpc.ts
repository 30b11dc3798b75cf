import { type DescMethod, type DescService, type Message, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  Metadata,
  type MethodDefinition,
  Server,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceDefinition,
  type sendUnaryData,
  status,
} from "@grpc/grpc-js";
import type { Config } from "../config.ts";
import type { HeaderReader } from "./caller.ts";
import { type Failure, statusBinary } from "./failure.ts";
import type { Call } from "./call.ts";
import { type ArrivingCall, type Status, createGrpcArrivals } from "./grpc-arrivals.ts";
import type { Method, StreamMethod, UnaryMethod } from "./methods.ts";
import type { Pipeline } from "./pipeline.ts";
import type { Messages } from "./streams.ts";

type Bytes = Uint8Array;
type RawCall = ServerUnaryCall<Buffer, Buffer>;
type RawStream = ServerWritableStream<Buffer, Buffer>;

// A throw while grpc-js decodes would answer INTERNAL before the caller was seen: the pipeline decodes.
const asIs = (bytes: Buffer) => bytes;

const pathOf = ({ parent, name }: DescMethod) => `/${parent.typeName}/${name}`;

/** The definition that grpc-js serves a protobuf-es service by. */
const definitionOf = (service: DescService): ServiceDefinition =>
  Object.fromEntries(
    service.methods.map((method): [string, MethodDefinition<Buffer, Buffer>] => [
      method.name,
      {
        path: pathOf(method),
        requestStream: false,
        responseStream: method.methodKind === "server_streaming",
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

const timeoutOf = (raw: RawCall | RawStream) => {
  const deadline = raw.getDeadline();
  return deadline === Infinity ? undefined : Number(deadline) - Date.now();
};

/** Below this many bytes a message is copied into Node's pool: to ask V8 for its memory, as a view does, costs more. */
const COPIED_BYTES = 1_024;

const asBuffer = (bytes: Bytes) =>
  bytes.length < COPIED_BYTES ? Buffer.from(bytes) : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

const statusOf = (failure: Failure, requestId: string) => {
  const metadata = new Metadata();
  metadata.set("x-request-id", requestId);
  metadata.set("grpc-status-details-bin", asBuffer(statusBinary(failure)));
  return { code: failure.code as number, details: failure.message, metadata };
};

/** A request id as it is sent: by then it has been checked, which `set` would do again. */
class RequestIdMetadata extends Metadata {
  readonly #requestId: string;

  constructor(requestId: string) {
    super();
    this.#requestId = requestId;
  }

  override toHttp2Headers() {
    return { "x-request-id": this.#requestId };
  }
}

const sendRequestId = (raw: RawCall | RawStream, { requestId }: Call) =>
  raw.sendMetadata(new RequestIdMetadata(requestId));

const exchangeOf = (method: Method, header: HeaderReader, raw: Pick<RawCall, "request">) => ({
  header,
  system: "grpc" as const,
  decode: () => fromBinary(method.desc.input, raw.request),
  encode: (message: Message) => asBuffer(toBinary(method.desc.output, message)),
});

const unaryHandler = (pipeline: Pipeline, method: UnaryMethod) => (raw: RawCall, callback: sendUnaryData<Buffer>) => {
  const header = headersOf(raw.metadata);
  const call = pipeline.receive(header, timeoutOf(raw));
  raw.on("cancelled", () => call.end("CANCELLED"));
  void pipeline.answer(method, call, exchangeOf(method, header, raw)).then((answer) => {
    if ("failure" in answer) return callback(statusOf(answer.failure, call.requestId));
    sendRequestId(raw, call);
    callback(null, answer.encoded);
  });
};

/**
 * Whether grpc-js has closed the call's connection for its age: it tells no handler, lets the streams go on, and cuts them
 * off when the grace is over. Its type hides where the connection is; a test sees streams end before that.
 */
const isLeaving = (raw: RawStream): boolean => {
  const { call } = raw as unknown as { call?: { stream?: { session?: { closed?: boolean } } } };
  return call?.stream?.session?.closed === true;
};

/** Resolves once the transport takes more, or nobody waits for it any more. */
const drained = async (raw: RawStream, call: Call) => {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  const done = () => resolve(undefined);
  raw.once("drain", done);
  const stay = call.whenOver(done);
  await promise;
  raw.off("drain", done);
  stay();
};

/** Asks for the next message only when the former ones are on their way; answers with what ended the stream. */
const writeAll = async (raw: RawStream, call: Call, messages: Messages<Buffer>): Promise<Failure | undefined> => {
  for (;;) {
    const { done, value } = await messages.next();
    if (done) return value;
    if (!raw.write(value)) await drained(raw, call);
  }
};

const streamHandler = (pipeline: Pipeline, method: StreamMethod) => (raw: RawStream) => {
  const header = headersOf(raw.metadata);
  const call = pipeline.receive(header, timeoutOf(raw) ?? Infinity);
  raw.on("cancelled", () => call.end("CANCELLED"));
  const exchange = { ...exchangeOf(method, header, raw), isLeaving: () => isLeaving(raw) };
  const answer = async () => {
    const opened = await pipeline.open(method, call, exchange);
    if ("failure" in opened) return opened.failure;
    sendRequestId(raw, call);
    return await writeAll(raw, call, opened.messages);
  };
  void answer().then((failure) => {
    if (failure) raw.emit("error", statusOf(failure, call.requestId));
    else raw.end();
  });
};

const handlerOf = (pipeline: Pipeline, method: Method) =>
  method.type === "unary" ? unaryHandler(pipeline, method) : streamHandler(pipeline, method);

/** Health and reflection, which have no pipeline. */
const LATE: Status = { code: status.DEADLINE_EXCEEDED, details: "the deadline passed" };

/** What takes too long to come is refused by the pipeline, so that it is counted and logged as every call is. */
const refuseLate =
  (pipeline: Pipeline, methods: ReadonlyMap<string, Method>) =>
  async ({ metadata, handler }: ArrivingCall): Promise<Status> => {
    const method = methods.get(handler.path);
    if (!method) return LATE;
    const header = headersOf(metadata);
    const call = pipeline.receive(header, 0);
    const exchange = exchangeOf(method, header, { request: Buffer.alloc(0) });
    const answered =
      method.type === "unary"
        ? await pipeline.answer(method, call, exchange)
        : await pipeline.open(method, call, exchange);
    return "failure" in answered ? statusOf(answered.failure, call.requestId) : LATE;
  };

/** Serves the methods over native gRPC; health and reflection are added by others. */
export const createGrpcServer = (
  { grpc, messageMaxBytes, callTimeoutMs }: Config,
  pipeline: Pipeline,
  methods: readonly Method[],
): Server => {
  const late = refuseLate(pipeline, new Map(methods.map((method) => [pathOf(method.desc), method])));
  const server = new Server({
    interceptors: [createGrpcArrivals({ limitMs: callTimeoutMs, late })],
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
