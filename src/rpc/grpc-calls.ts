import { type DescMethod, type Message, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Metadata, type ServerUnaryCall, type ServerWritableStream, status } from "@grpc/grpc-js";
import { AwaitedMessage } from "./awaited-message.ts";
import type { Call } from "./call.ts";
import type { HeaderReader } from "./caller.ts";
import type { Failure } from "./failure.ts";
import type { Gate, GrpcArrival, GrpcCall, Status, Taker } from "./grpc-arrivals.ts";
import { RequestIdMetadata, asBuffer, statusOf } from "./grpc-status.ts";
import { READ_OPTIONS } from "./message-limits.ts";
import type { Method, StreamMethod, UnaryMethod } from "./methods.ts";
import type { Exchange, Pipeline } from "./pipeline.ts";
import { unreadable } from "./refusal.ts";
import type { Messages, Opened } from "./streams.ts";

type RawCall = ServerUnaryCall<Buffer, Buffer>;
type RawStream = ServerWritableStream<Buffer, Buffer>;

/** How grpc-js serves a method. */
interface GrpcMethod<Raw> extends Pick<Gate, "take"> {
  /** Called once the message is there. */
  readonly handle: (raw: Raw) => void;
}

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

/** A call that was taken in when its headers were there. */
class Taken implements Taker, Exchange<Buffer> {
  readonly system = "grpc";
  readonly header: HeaderReader;
  readonly call: Call;
  readonly #desc: DescMethod;
  readonly #arrival: GrpcArrival;
  readonly #message: AwaitedMessage;

  constructor(pipeline: Pipeline, { desc }: Method, arrival: GrpcArrival, timeoutMs: number | undefined) {
    this.header = headersOf(arrival.call.metadata);
    this.call = pipeline.receive(this.header, timeoutMs);
    this.#desc = desc;
    this.#arrival = arrival;
    this.#message = new AwaitedMessage(() => arrival.read());
  }

  decode(): Promise<Message> {
    return this.#message.ask();
  }

  encode(answer: Message): Buffer {
    return asBuffer(toBinary(this.#desc.output, answer));
  }

  /** grpc-js tells nobody that it closes a connection for its age: it lets streams go on, and cuts them off at last. */
  isLeaving(): boolean {
    return this.#arrival.call.stream.session?.closed === true;
  }

  /** Its message's bytes are there. */
  deliver(bytes: Buffer): void {
    try {
      this.#message.deliver(fromBinary(this.#desc.input, bytes, READ_OPTIONS));
    } catch (cause) {
      this.#message.refuse(unreadable(cause));
    }
  }

  cancel(): void {
    this.call.end("CANCELLED");
  }

  expire(): void {
    this.call.end("DEADLINE");
  }

  refuse(why: Status): boolean {
    // grpc-js has a timer of its own, whose answer says no reason.
    if (why.code === DEADLINE_EXCEEDED && this.call.end("DEADLINE")) return true;
    if (this.#message.isThere) return false;
    this.#message.refuse(refusalOf(why));
    return true;
  }
}

/** What was kept of calls, on the metadata that grpc-js hands on: a WeakMap's entries last until they are collected. */
const createKept = <Kept>() => {
  const key = Symbol("kept");
  type Keeper = Metadata & { [key]?: Kept };
  return {
    keep({ call }: GrpcArrival, one: Kept) {
      (call.metadata as Keeper)[key] = one;
    },
    of({ metadata }: Pick<RawCall, "metadata">): Kept {
      const { [key]: one } = metadata as Keeper;
      if (!one) throw new Error("a call that was not taken in");
      return one;
    },
  };
};

export const createGrpcUnary = (pipeline: Pipeline, method: UnaryMethod): GrpcMethod<RawCall> => {
  const calls = createKept<Taken>();
  return {
    take(arrival) {
      const taken = new Taken(pipeline, method, arrival, timeoutOf(arrival.call));
      calls.keep(arrival, taken);
      const { call } = taken;
      void pipeline.answer(method, call, taken).then((answer) => {
        if ("failure" in answer) return arrival.settle(statusOf(answer.failure, call.requestId));
        arrival.call.sendMetadata(new RequestIdMetadata(call.requestId));
        arrival.answer(answer.encoded);
      });
      return taken;
    },
    handle: (raw) => calls.of(raw).deliver(raw.request),
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

interface OpeningStream {
  readonly taken: Taken;
  readonly opening: Promise<Opened<Buffer>>;
}

const writeStream = async (raw: RawStream, { taken: { call }, opening }: OpeningStream) => {
  const opened = await opening;
  if ("failure" in opened) return;
  raw.sendMetadata(new RequestIdMetadata(call.requestId));
  const failure = await writeAll(raw, call, opened.messages);
  if (failure) raw.emit("error", statusOf(failure, call.requestId));
  else raw.end();
};

export const createGrpcStream = (pipeline: Pipeline, method: StreamMethod): GrpcMethod<RawStream> => {
  const streams = createKept<OpeningStream>();
  return {
    take(arrival) {
      const taken = new Taken(pipeline, method, arrival, timeoutOf(arrival.call) ?? Infinity);
      const { call } = taken;
      const opening = pipeline.open(method, call, taken);
      streams.keep(arrival, { taken, opening });
      void opening.then((opened) => {
        if ("failure" in opened) arrival.settle(statusOf(opened.failure, call.requestId));
      });
      return taken;
    },
    handle(raw) {
      const stream = streams.of(raw);
      stream.taken.deliver(raw.request);
      void writeStream(raw, stream);
    },
  };
};
