import type { Message } from "@bufbuild/protobuf";
import { Code, ConnectError, type HandlerContext, createContextKey } from "@connectrpc/connect";
import { AwaitedMessage } from "./awaited-message.ts";
import type { Call } from "./call.ts";
import type { HeaderReader } from "./caller.ts";
import { type Failure, failureOf } from "./failure.ts";
import type { Answer, Exchange } from "./pipeline.ts";
import { Refusal, unreadable } from "./refusal.ts";
import { bodyKey } from "./request-bodies.ts";
import type { Opened } from "./streams.ts";

/** A call whose headers are there: its message is read once the pipeline has let its caller in. */
interface Arrival<Answered> {
  readonly call: Call;
  readonly message: AwaitedMessage;
  readonly answering: Promise<Answered>;
}

/** Connect calls these INTERNAL, as if the fault were ours: a message that it cannot decode, or not decompress. */
const SENDERS_FAULT = /^(parse binary: |decompression failed|received compressed envelope)/;

/** What it says of broken JSON, up to where it quotes what was sent: a code as a number, a secret without quotes. */
const UNQUOTED = /^cannot decode .+? from JSON(?:: (?:list item #\d+: )?expected (?:message |enum )?[\w.]+)?/;

/** What is said of a message that connect could not read; undefined of what is wrong with the transport. */
const refusalOf = ({ rawMessage, code, cause }: ConnectError): Refusal | undefined => {
  if (cause instanceof Refusal) return cause;
  if (SENDERS_FAULT.test(rawMessage)) return unreadable(cause);
  const [description] = UNQUOTED.exec(rawMessage) ?? [];
  if (description !== undefined) return unreadable(undefined, description);
  return code === Code.InvalidArgument && cause instanceof Error ? unreadable(undefined) : undefined;
};

/** A failure as connect answers it. */
export const errorOf = ({ code, message, details }: Failure, { requestId }: Call): ConnectError =>
  new ConnectError(message, code, { "x-request-id": requestId }, [...details]);

/** Connect writes an error right after it has aborted the call with it: the one moment at which it can be mended. */
const mend = (error: ConnectError, failure: Failure, call: Call): void => {
  const { code, rawMessage, details, metadata } = errorOf(failure, call);
  Object.assign(error, { code, rawMessage, details, metadata });
};

/** Connect's codes for a message that it does not take. With another code its own error means that the caller has gone. */
const NOT_TAKEN = [Code.InvalidArgument, Code.ResourceExhausted, Code.Unimplemented];
/** Of a stream that its caller has reset, the code is the caller's choice, and says nothing of a message. */
const RESET = /^http\/2 stream closed/;

const isNotTaken = ({ code, rawMessage }: ConnectError) => NOT_TAKEN.includes(code) && !RESET.test(rawMessage);

/** Ends a call as connect's signal says: nobody waits for it any more, or its message cannot be read. */
const endBy = (reason: unknown, call: Call, message: AwaitedMessage): void => {
  if (!(reason instanceof ConnectError)) return void call.end("CANCELLED");
  if (reason.code === Code.DeadlineExceeded) return void call.end("DEADLINE");
  // What has details is the call's own answer.
  if (reason.details.length > 0) return;
  const why = refusalOf(reason) ?? (isNotTaken(reason) ? reason : undefined);
  if (!why || message.isThere) return void call.end("CANCELLED");
  message.refuse(why);
  mend(reason, failureOf(why, call.requestId), call);
};

const headersOf =
  ({ requestHeader }: HandlerContext): HeaderReader =>
  (name) =>
    requestHeader.get(name) ?? undefined;

/**
 * Lets in the callers of one method before their messages are read, decompressed or decoded.
 * @param receive takes the call in.
 * @param begin answers it.
 */
export const createArrivals = <Answered extends Answer<Message> | Opened<Message>>(
  receive: (header: HeaderReader, context: HandlerContext) => Call,
  begin: (call: Call, exchange: Exchange<Message>) => Promise<Answered>,
) => {
  const key = createContextKey<Arrival<Answered> | undefined>(undefined);

  return {
    /** @throws ConnectError where the caller may not call. */
    async gate(context: HandlerContext): Promise<void> {
      const header = headersOf(context);
      const call = receive(header, context);
      const asked = Promise.withResolvers<undefined>();
      const message = new AwaitedMessage(() => asked.resolve(undefined));

      const { signal } = context;
      const end = () => endBy(signal.reason, call, message);
      if (signal.aborted) end();
      signal.addEventListener("abort", end, { once: true });

      const answering = begin(call, {
        header,
        // gRPC-Web is gRPC.
        system: context.protocolName === "connect" ? "connectrpc" : "grpc",
        decode: () => message.ask(),
        encode: (response) => response,
      });
      context.values.set(key, { call, message, answering });
      const refused = await Promise.race([asked.promise, answering]);
      if (refused && "failure" in refused) throw errorOf(refused.failure, call);
      // It ends while its message comes: by its deadline.
      void answering.then((answer) => {
        if (!message.isThere && "failure" in answer) context.values.get(bodyKey)?.giveUp(errorOf(answer.failure, call));
      });
    },

    /** The call that the gate let in. */
    of({ values }: HandlerContext): Arrival<Answered> {
      const arrival = values.get(key);
      if (!arrival) throw new Error("a call without a gate");
      return arrival;
    },
  };
};
