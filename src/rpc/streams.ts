import { create } from "@bufbuild/protobuf";
import type { Log } from "../log.ts";
import { startPolling } from "../polling.ts";
import type { Call } from "./call.ts";
import { type Failure, failureOf } from "./failure.ts";
import type { StreamMethod } from "./methods.ts";
import type { Exchange } from "./pipeline.ts";
import type { Ended } from "./records.ts";
import { refusal } from "./refusal.ts";

/** How often a stream's caller is verified again, in milliseconds. */
const VERIFY_MS = 1_000;

/**
 * A stream's messages, encoded one by one as they are asked for, so that what nobody takes is never made; at its end the
 * failure that ended it, where one did.
 */
export type Messages<Encoded> = AsyncGenerator<Encoded, Failure | undefined, undefined>;

/** A stream that can begin, or why it cannot. */
export type Opened<Encoded> = { readonly messages: Messages<Encoded> } | { readonly failure: Failure };

/** How a stream ended. */
type StreamEnd = Pick<Ended, "startedAt" | "failure" | "error" | "messages">;

type Answers = Awaited<ReturnType<StreamMethod["handle"]>>;

/** Whom a stream is for, and what it comes from. */
interface Opening<Encoded> {
  readonly method: StreamMethod;
  readonly call: Call;
  readonly exchange: Pick<Exchange<Encoded>, "encode" | "isLeaving">;
  readonly begin: () => Promise<Answers>;
  /** Throws once the caller may not read any more. */
  readonly verify: () => Promise<void>;
  /** Told once, when it has ended. */
  readonly record: (end: StreamEnd) => void;
}

/** The streams under way. */
interface Streams {
  /** Begins one; never throws. */
  open<Encoded>(opening: Opening<Encoded>): Promise<Opened<Encoded>>;
  /** Ends those under way and all later ones, for which a drain would wait for ever. */
  endAll(): void;
}

export const createStreams = (log: Log): Streams => {
  const underWay = new Set<Call>();
  let leaving = false;

  const lookAfter = ({ call, exchange, verify }: Opening<unknown>) => {
    const polling = startPolling(async () => {
      try {
        if (exchange.isLeaving?.()) throw refusal("STREAM_ENDED");
        await verify();
      } catch (error) {
        call.end(error as Error);
      }
    }, VERIFY_MS);
    // Of whoever reads nothing the transport asks for no more: his stream stands until he goes.
    call.whenOver(polling.stop);
    return polling;
  };

  const letGo = (opening: Opening<unknown>, end: StreamEnd) => {
    underWay.delete(opening.call);
    opening.record(end);
    opening.call.close();
  };

  async function* messagesOf<Encoded>(opening: Opening<Encoded>, answers: Answers, startedAt: number) {
    const { method, call, exchange } = opening;
    const iterator = answers[Symbol.asyncIterator]();
    const polling = lookAfter(opening);
    let messages = 0;
    let error: unknown = refusal("CANCELLED");
    let failure: Failure | undefined;
    try {
      for (;;) {
        const next = await call.outcome(() => iterator.next());
        if (next.done) break;
        messages++;
        yield exchange.encode(create(method.desc.output, next.value));
      }
      error = undefined;
    } catch (thrown) {
      error = thrown;
    } finally {
      // Also where the transport asks for no more, because nobody reads: it left at a `yield`.
      polling.stop();
      if (error !== undefined) failure = failureOf(call.ended ?? error, call.requestId);
      letGo(opening, { startedAt, failure, error: call.ended ?? error, messages });
      // What the handler still waits for ends with the call's signal; the caller does not wait for that.
      iterator
        .return?.()
        .catch((fault: unknown) => log.error({ err: fault, rpc: method.name }, "a stream did not end"));
    }
    return failure;
  }

  return {
    async open(opening) {
      const { call, begin } = opening;
      const startedAt = performance.now();
      underWay.add(call);
      if (leaving) call.end(refusal("STREAM_ENDED"));
      try {
        return { messages: messagesOf(opening, await call.outcome(begin), startedAt) };
      } catch (error) {
        const failure = failureOf(error, call.requestId);
        letGo(opening, { startedAt, failure, error, messages: 0 });
        return { failure };
      }
    },
    endAll() {
      leaving = true;
      for (const call of underWay) call.end(refusal("STREAM_ENDED"));
    },
  };
};
