import { type Message, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Metadata, type ServerUnaryCall, type ServerWritableStream, status } from "@grpc/grpc-js";
import { AwaitedMessage } from "./awaited-message.ts";
import type { Call } from "./call.ts";
import type { HeaderReader } from "./caller.ts";
import type { Failure } from "./failure.ts";
import type { Gate, GrpcArrival, GrpcCall, Status, Taker } from "./grpc-arrivals.ts";
import { RequestIdMetadata, asBuffer, statusOf } from "./grpc-status.ts";
import type { Method, StreamMethod, UnaryMethod } from "./methods.ts";
import type { Pipeline } from "./pipeline.ts";
import { unreadable } from "./refusal.ts";
import type { Messages, Opened } from "./streams.ts";

export type RawCall = ServerUnaryCall<Buffer, Buffer>;
export type RawStream = ServerWritableStream<Buffer, Buffer>;

/** How grpc-js serves a method. */
export interface GrpcMethod<Raw> extends Pick<Gate, "take"> {
  /** Called once the message is there. */
  readonly handle: (raw: Raw) => void;
}

const OK: Status = { code: status.OK, details: "OK" };
const INVALID_ARGUMENT: number = status.INVALID_ARGUMENT;
const DEADLINE_EXCEEDED: number = status.DEADLINE_EXCEEDED;

const headersOf =
  (metadata: Metadata): HeaderReader =>
  (name) => {
    const value = metadata.get(name)[0];
    return typeof value === "string" ? value : undefined;
  };

const timeoutOf = (call: GrpcCall) => {
  const deadline = call.getDeadline();
  return deadline === Infinity ? undefined : Number(deadline) - Date.now();
};

/** What grpc-js says of a message that it does not take: too large, compressed otherwise, none or a second one. */
const NOT_TAKEN: Readonly<Record<number, Code>> = {
  [status.RESOURCE_EXHAUSTED]: Code.ResourceExhausted,
  [status.UNIMPLEMENTED]: Code.Unimplemented,
};

const refusalOf = ({ code, details }: Status) =>
  code === INVALID_ARGUMENT ? unreadable(undefined, details) : new ConnectError(details, NOT_TAKEN[code]);

const takerOf = (call: Call, message: AwaitedMessage): Taker => ({
  cancel: () => call.end("CANCELLED"),
  expire: () => call.end("DEADLINE"),
  refuse(why) {
    // grpc-js has a timer of its own, whose answer says no reason.
    if (why.code === DEADLINE_EXCEEDED && call.end("DEADLINE")) return true;
    if (message.isThere) return false;
    message.refuse(refusalOf(why));
    return true;
  },
});

/** Takes a call in whose headers are there. */
const received = (pipeline: Pipeline, { desc }: Method, arrival: GrpcArrival, timeoutMs: number | undefined) => {
  const header = headersOf(arrival.call.metadata);
  const call = pipeline.receive(header, timeoutMs);
  const message = new AwaitedMessage(() => arrival.read());
  const exchange = {
    header,
    system: "grpc" as const,
    decode: () => message.ask(),
    encode: (answer: Message) => asBuffer(toBinary(desc.output, answer)),
  };
  return { call, message, exchange, taker: takerOf(call, message) };
};

/** Hands a call its message, whose bytes are there. */
const deliver = (message: AwaitedMessage, { desc }: Method, bytes: Buffer): void => {
  try {
    message.deliver(fromBinary(desc.input, bytes));
  } catch (cause) {
    message.refuse(unreadable(cause));
  }
};

/** What was taken in, on the metadata that grpc-js hands on: a WeakMap's entries cost more than all of what is kept. */
const createTaken = <Taken>() => {
  const key = Symbol("taken");
  type Kept = Metadata & { [key]?: Taken };
  return {
    keep({ call }: GrpcArrival, one: Taken) {
      (call.metadata as Kept)[key] = one;
    },
    of({ metadata }: Pick<RawCall, "metadata">): Taken {
      const { [key]: one } = metadata as Kept;
      if (!one) throw new Error("a call that was not taken in");
      return one;
    },
  };
};

export const createGrpcUnary = (pipeline: Pipeline, method: UnaryMethod): GrpcMethod<RawCall> => {
  const taken = createTaken<AwaitedMessage>();
  return {
    take(arrival) {
      const { call, message, exchange, taker } = received(pipeline, method, arrival, timeoutOf(arrival.call));
      taken.keep(arrival, message);
      void pipeline.answer(method, call, exchange).then((answer) => {
        if ("failure" in answer) return arrival.settle(statusOf(answer.failure, call.requestId));
        arrival.call.sendMetadata(new RequestIdMetadata(call.requestId));
        arrival.call.sendMessage(answer.encoded, () => arrival.settle(OK));
      });
      return taker;
    },
    handle: (raw) => deliver(taken.of(raw), method, raw.request),
  };
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

interface TakenStream {
  readonly call: Call;
  readonly message: AwaitedMessage;
  readonly opening: Promise<Opened<Buffer>>;
}

const writeStream = async (raw: RawStream, { call, opening }: TakenStream) => {
  const opened = await opening;
  if ("failure" in opened) return;
  raw.sendMetadata(new RequestIdMetadata(call.requestId));
  const failure = await writeAll(raw, call, opened.messages);
  if (failure) raw.emit("error", statusOf(failure, call.requestId));
  else raw.end();
};

export const createGrpcStream = (pipeline: Pipeline, method: StreamMethod): GrpcMethod<RawStream> => {
  const taken = createTaken<TakenStream>();
  return {
    take(arrival) {
      const timeoutMs = timeoutOf(arrival.call) ?? Infinity;
      const { call, message, exchange, taker } = received(pipeline, method, arrival, timeoutMs);
      // grpc-js tells nobody that it closes a connection for its age: it lets streams go on, and cuts them off at last.
      const isLeaving = () => arrival.call.stream.session?.closed === true;
      const opening = pipeline.open(method, call, { ...exchange, isLeaving });
      taken.keep(arrival, { call, message, opening });
      void opening.then((opened) => {
        if ("failure" in opened) arrival.settle(statusOf(opened.failure, call.requestId));
      });
      return taker;
    },
    handle(raw) {
      const stream = taken.of(raw);
      deliver(stream.message, method, raw.request);
      void writeStream(raw, stream);
    },
  };
};
