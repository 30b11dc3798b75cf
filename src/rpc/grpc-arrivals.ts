import { constants, type ServerHttp2Stream } from "node:http2";
import { type Metadata, type ServerInterceptor, status } from "@grpc/grpc-js";
import { TIMER_MAX_MS } from "../config-values.ts";

/** The status of a call, by gRPC's number. */
export interface Status {
  readonly code: number;
  readonly details: string;
  readonly metadata?: Metadata;
}

/** A call of grpc-js, whose type hides most of it. A test sees what becomes of unfinished calls. */
export interface ArrivingCall {
  readonly stream: ServerHttp2Stream;
  readonly metadata: Metadata;
  readonly handler: { readonly path: string };
  /** Its caller has sent all that he will. */
  readonly receivedHalfClose: boolean;
  sendStatus(answer: Status): void;
}

export interface GrpcArrivalsOptions {
  /** How long a call's messages may take to come, in milliseconds. */
  readonly limitMs: number;
  /** What a call is answered whose messages took longer. */
  readonly late: (call: ArrivingCall) => Promise<Status>;
}

const INTERNAL: number = status.INTERNAL;

/** How often it is looked at what has not come. */
const LOOK_MS = 1_000;

// Health and reflection decode their messages by themselves.
const SENDERS_FAULT = /^(Failed to decompress message|Invalid grpc-timeout|Error deserializing request)/;

/**
 * What becomes of calls before grpc-js hands them to their handlers, which it does once their messages are there: until
 * then it keeps what has come, without a limit of time, and asks nobody. Those that take too long are answered here, and
 * streams whose rest nobody waits for are closed, for what they hold goes with them alone.
 *
 * grpc-js also calls some faults of the sender INTERNAL, as if they were ours, past all that an interceptor may replace.
 */
export const createGrpcArrivals = ({ limitMs, late }: GrpcArrivalsOptions): ServerInterceptor => {
  const begun = new Map<ArrivingCall, number>();
  let timer: NodeJS.Timeout | undefined;

  const refuse = async (call: ArrivingCall) => call.sendStatus(await late(call));

  const look = () => {
    const oldest = performance.now() - limitMs;
    for (const [call, since] of begun) {
      const isThere = call.receivedHalfClose || call.stream.destroyed;
      if (isThere || since < oldest) begun.delete(call);
      if (!isThere && since < oldest) void refuse(call);
    }
    timer = undefined;
    if (begun.size > 0) lookLater();
  };

  // Only while there is something to look at: a server that is no more leaves no timer.
  const lookLater = () => {
    timer ??= setTimeout(look, Math.min(LOOK_MS, limitMs, TIMER_MAX_MS)).unref();
  };

  const sendStatus = function (this: ArrivingCall, answer: Status) {
    begun.delete(this);
    const { sendStatus: send } = Object.getPrototypeOf(this) as ArrivingCall;
    const isBlamed = answer.code === INTERNAL && SENDERS_FAULT.test(answer.details);
    send.call(this, isBlamed ? { ...answer, code: status.INVALID_ARGUMENT } : answer);
    // Once the answer is on its way (RFC 9113, 8.1).
    if (!this.receivedHalfClose) setImmediate(() => this.stream.close(constants.NGHTTP2_NO_ERROR));
  };

  return (_, intercepted) => {
    const call = intercepted as unknown as ArrivingCall;
    begun.set(call, performance.now());
    lookLater();
    call.sendStatus = sendStatus;
    return intercepted as never;
  };
};
