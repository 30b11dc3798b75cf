import { constants, type ServerHttp2Stream } from "node:http2";
import { type Metadata, type ServerInterceptor, status } from "@grpc/grpc-js";
import { type LookedAt, lookNowAndThen } from "../timers.ts";
import { giveUpUntaken } from "./untaken-answers.ts";

/** The status of a call, by gRPC's number. */
export interface Status {
  readonly code: number;
  readonly details: string;
  readonly metadata?: Metadata;
}

/** Told what comes of a call. */
interface Listener {
  onReceiveMetadata(metadata: Metadata): void;
  onReceiveMessage(message: unknown): void;
  onReceiveHalfClose(): void;
  onCancel(): void;
}

/** A call of grpc-js, whose type hides most of it. Tests see what becomes of unfinished, large and compressed messages. */
export interface GrpcCall {
  readonly stream: ServerHttp2Stream;
  readonly metadata: Metadata;
  readonly handler: { readonly path: string; readonly type: string };
  /** Its caller has sent all that he will. */
  readonly receivedHalfClose: boolean;
  /** What bounds a message as it comes. */
  readonly decoder: {
    maxReadMessageLength: number;
    /** 0 between messages. */
    readonly readState: number;
    write: (data: Buffer) => Buffer[];
  };
  /** What bounds it once it is decompressed. */
  maxReceiveMessageSize: number;
  /** Told that he has: with what has come, that begins its handler. */
  handleEndEvent(): void;
  getDeadline(): Date | number;
  start(listener: Listener): void;
  sendMetadata(metadata: Metadata): void;
  sendMessage(message: Buffer, sent: () => void): void;
  sendStatus(answer: Status): void;
}

/** What waits for a call's message. */
export interface Taker {
  /** The caller has gone. */
  cancel(): void;
  /** The message took too long. */
  expire(): void;
  /** The message cannot be read, and grpc-js says why; false where it was there already. */
  refuse(why: Status): boolean;
}

/** A call whose headers are there, and whose message stays with its sender until it is asked for. */
export interface GrpcArrival {
  readonly call: GrpcCall;
  /** Has the message read. */
  read(): void;
  /** Sends its one message, and then its status. */
  answer(message: Buffer): void;
  /** Ends the call, and its stream, whose rest nobody waits for: what it holds goes with it alone. */
  settle(answer: Status): void;
}

/** What becomes of the calls of one path. */
export interface Gate {
  readonly maxBytes: number;
  readonly take: (arrival: GrpcArrival) => Taker;
}

interface GrpcArrivalsOptions {
  /** How long a call's messages may take to come, and nobody take anything of its answer, in milliseconds. */
  readonly limitMs: number;
  /** By path; none of health and reflection, which ask nobody who he is. */
  readonly gates: ReadonlyMap<string, Gate>;
}

const INTERNAL: number = status.INTERNAL;
const OK: Status = { code: status.OK, details: "OK" };
const CUT_SHORT: Status = { code: status.INVALID_ARGUMENT, details: "the message is cut short" };
const LATE: Status = { code: status.DEADLINE_EXCEEDED, details: "the deadline passed" };

/** How often messages are looked for that have not come, and answers that were not taken, in time; in milliseconds. */
const LOOK_MS = 1_000;

/** What grpc-js calls INTERNAL, as if it were our fault, past all that an interceptor may replace. */
const SENDERS_FAULT = /^(Failed to decompress message|Invalid grpc-timeout|Error deserializing request)/;

/** grpc-js and its health check quote what was sent: nghttp2 ends a connection with all its calls over 64 KiB of headers. */
const DETAILS_MAX = 2_000;

const blamed = ({ code, details, ...rest }: Status): Status => ({
  ...rest,
  code: code === INTERNAL && SENDERS_FAULT.test(details) ? status.INVALID_ARGUMENT : code,
  details: details.length > DETAILS_MAX ? details.slice(0, DETAILS_MAX).toWellFormed() : details,
});

/** How many messages may come at once to reflection alone, which takes more than one. */
const TOGETHER_MAX = 64;

/** grpc-js decompresses at once whatever has come at once: hundreds of empty messages in one frame. */
const boundMessages = ({ decoder, handler }: GrpcCall): void => {
  const write = decoder.write.bind(decoder);
  decoder.write = (data) => {
    const messages = write(data);
    // A second one refuses its call.
    if (handler.type !== "bidi") return messages.slice(0, 2);
    if (messages.length > TOGETHER_MAX) throw new Error(`Received more than ${TOGETHER_MAX} messages at once`);
    return messages;
  };
};

class Arrival implements GrpcArrival, Listener {
  readonly call: GrpcCall;
  /** When its message was asked for, and then when it was answered: until then its caller is looked up. */
  since: number;
  /** What grpc-js does with the call by itself. */
  readonly #plain: GrpcCall;
  readonly #gate: Gate | undefined;
  readonly #limitMs: number;
  readonly #waiting: LookedAt<Arrival>;
  #isAnswered = false;
  #taker: Taker | undefined;
  #listener: Listener | undefined;

  constructor(call: GrpcCall, gate: Gate | undefined, limitMs: number, waiting: LookedAt<Arrival>) {
    this.call = call;
    this.#plain = Object.getPrototypeOf(call) as GrpcCall;
    this.#gate = gate;
    this.#limitMs = limitMs;
    this.#waiting = waiting;
    this.since = gate ? Infinity : performance.now();
    call.sendStatus = (answer) => this.#answer(blamed(answer));
    boundMessages(call);
    if (!gate) {
      // Health answers by itself. What a stream sends may be all for hours.
      if (call.handler.type === "unary") call.sendMessage = (message, sent) => this.#send(message, sent);
      return;
    }
    call.maxReceiveMessageSize = gate.maxBytes;
    call.decoder.maxReadMessageLength = gate.maxBytes;
    call.start = (listener) => this.#start(listener);
  }

  get isOver(): boolean {
    const { receivedHalfClose, stream } = this.call;
    return stream.destroyed || (receivedHalfClose && !this.#isAnswered);
  }

  #start(listener: Listener): void {
    this.#listener = listener;
    this.#plain.start.call(this.call, this);
  }

  onReceiveMetadata(): void {
    this.#taker = this.#gate?.take(this);
  }

  read(): void {
    this.since = performance.now();
    this.#listener?.onReceiveMetadata(this.call.metadata);
  }

  onReceiveMessage(message: unknown): void {
    this.#listener?.onReceiveMessage(message);
  }

  onReceiveHalfClose(): void {
    if (this.call.decoder.readState === 0) this.#listener?.onReceiveHalfClose();
    else this.#answer(CUT_SHORT);
  }

  onCancel(): void {
    this.#taker?.cancel();
    this.#listener?.onCancel();
  }

  #answer(answer: Status): void {
    if (!this.#taker?.refuse(answer)) this.settle(answer);
  }

  #send(message: Buffer, sent: () => void): void {
    this.since = performance.now();
    this.#isAnswered = true;
    this.#waiting.add(this);
    this.#plain.sendMessage.call(this.call, message, sent);
  }

  answer(message: Buffer): void {
    this.#send(message, () => this.settle(OK));
  }

  settle(answer: Status): void {
    this.#waiting.delete(this);
    const { stream, receivedHalfClose } = this.call;
    const hasBegun = stream.headersSent;
    this.#plain.sendStatus.call(this.call, answer);
    // What was sent before it may be taken by nobody.
    if (hasBegun && (!receivedHalfClose || answer.code === LATE.code))
      setTimeout(() => stream.close(constants.NGHTTP2_CANCEL), LOOK_MS).unref();
    if (receivedHalfClose) return;
    // Closing the stream below counts as the end of what came: a handler would begin, and never be told that its call is over.
    this.call.handleEndEvent = () => undefined;
    // Once the answer is on its way (RFC 9113, 8.1).
    const close = () => void setImmediate(() => stream.close(constants.NGHTTP2_NO_ERROR));
    if (!hasBegun) return close();
    // It stands in trailers, before which the peer must read what came.
    stream.once("wantTrailers", close);
  }

  expire(): void {
    // Timers for each answer cost more than a look at those that were not taken.
    if (this.#isAnswered) giveUpUntaken(this.call.stream, this.#limitMs);
    else if (this.#taker) this.#taker.expire();
    else this.settle(LATE);
  }
}

/**
 * What becomes of calls before their handlers have them, which is once their messages are there: by itself grpc-js reads
 * and decompresses what comes, keeps it without a limit of time, and asks nobody. Here callers are let in first, messages
 * that take too long are answered, and those whose sender nobody knows are small.
 */
export const createGrpcArrivals = ({ limitMs, gates }: GrpcArrivalsOptions): ServerInterceptor => {
  const waiting = lookNowAndThen<Arrival>(Math.min(LOOK_MS, limitMs), (arrival) => {
    const isLate = arrival.since < performance.now() - limitMs;
    if (arrival.isOver || isLate) waiting.delete(arrival);
    if (isLate && !arrival.isOver) arrival.expire();
  });

  return (_, intercepted) => {
    const call = intercepted as unknown as GrpcCall;
    waiting.add(new Arrival(call, gates.get(call.handler.path), limitMs, waiting));
    return intercepted as never;
  };
};
