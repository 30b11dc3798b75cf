import { randomUUID } from "node:crypto";
import { type Message, create } from "@bufbuild/protobuf";
import type { Log } from "../log.ts";
import { covers } from "../service-identity/permission-sets.ts";
import type { ServiceTokens } from "../service-identity/service-tokens.ts";
import type { RpcSystem, Tracing } from "../tracing.ts";
import { Call } from "./call.ts";
import { type ActorVerifier, type HeaderReader, actorOf, authenticate, checkTenant } from "./caller.ts";
import { type Failure, failureOf } from "./failure.ts";
import type { MethodOf, StreamMethod, UnaryMethod } from "./methods.ts";
import { createRecorder } from "./records.ts";
import { refusal } from "./refusal.ts";
import { type Opened, createStreams } from "./streams.ts";

interface PipelineOptions {
  readonly tokens: ServiceTokens;
  readonly verifyActor: ActorVerifier;
  readonly log: Log;
  /** The life of a call whose caller names no deadline. */
  readonly callTimeoutMs: number;
  readonly tracing?: Tracing | undefined;
}

export type Answer<Encoded> = { readonly encoded: Encoded } | { readonly failure: Failure };

/** How one call's messages and headers are read and written, by its transport. */
export interface Exchange<Encoded> {
  readonly header: HeaderReader;
  /** The protocol that it came by, for its span. */
  readonly system: RpcSystem;
  /** Once the transport has the message, which it reads when it is asked; rejected with what refuses it. */
  decode(): Promise<Message>;
  encode(message: Message): Encoded;
  /** Whether the connection takes no new calls any more, and will end the streams that are left. */
  isLeaving?(): boolean;
}

/** What every call goes through, whichever transport brought it. */
export interface Pipeline {
  /** Takes a call in. The transport ends it when its caller goes away. */
  receive(header: HeaderReader, timeoutMs: number | undefined): Call;
  /** Answers it; never throws. `decode` is asked only once the caller may call. */
  answer<Encoded>(method: UnaryMethod, call: Call, exchange: Exchange<Encoded>): Promise<Answer<Encoded>>;
  /** Likewise begins a stream, whose messages the transport asks for one by one. */
  open<Encoded>(method: StreamMethod, call: Call, exchange: Exchange<Encoded>): Promise<Opened<Encoded>>;
  /** Ends the streams: callers resume them elsewhere. */
  endStreams(): void;
  /** Answers those under way, and those whose messages have not come, that the server shuts down: callers try them elsewhere. */
  endCalls(): void;
  /** How many calls were received whose callers have said what they want, and wait for answers, or for more of a stream. */
  underWay(): number;
}

// HTTP strips spaces around a header's value, and so do we where HTTP/2 carries them.
const REQUEST_ID = /^(?! )[\x20-\x7e]{1,128}(?<! )$/;

// For a message that takes longer, in milliseconds, its caller is looked at again. Most come together with their headers.
const SEEN_MS = 100;

const requestIdOf = (header: HeaderReader) => {
  const sent = header("x-request-id");
  return sent !== undefined && REQUEST_ID.test(sent) ? sent : randomUUID();
};

const mayCall = ({ rule }: MethodOf<unknown>, held: readonly string[]) => {
  if (rule.case === "permission" && !covers(held, rule.value)) {
    throw refusal("PERMISSION_MISSING", { permission: rule.value });
  }
};

export const createPipeline = ({ tokens, verifyActor, log, callTimeoutMs, tracing }: PipelineOptions): Pipeline => {
  const received = new Set<Call>();
  /** Those among them whose messages have not come: who is slow to say what he wants keeps no shutdown. */
  const awaited = new Set<Call>();

  // Nothing to wait for where none is sent, as in most calls.
  const actorBy = (header: HeaderReader, call: Call) => {
    const token = header("x-actor-token");
    return token === undefined ? undefined : actorOf(verifyActor, token, call);
  };

  /** Who calls, and for whom, as they are now. */
  const see = async (method: MethodOf<unknown>, call: Call, header: HeaderReader) => {
    const found = method.rule.case === "anonymous" ? undefined : authenticate(tokens, header);
    const caller = found instanceof Promise ? await found : found;
    if (caller) {
      call.identify(caller, call.actor);
      mayCall(method, caller.permissions);
    }
    const proving = actorBy(header, call);
    const actor = proving && (await proving);
    if (caller && actor) call.identify(caller, actor);
  };

  // `return await` here and below: a promise that is returned as it is takes two turns more.
  const handle = async <Answered>(method: MethodOf<Answered>, call: Call, exchange: Exchange<unknown>) => {
    const { header } = exchange;
    await see(method, call, header);
    const seenAt = performance.now();
    if (!call.ended) awaited.add(call);
    const request = await exchange.decode();
    awaited.delete(call);
    // Nobody keeps what he has lost meanwhile.
    if (performance.now() - seenAt > SEEN_MS) await see(method, call, header);
    const { callerIfAny: caller, actor } = call;
    if (caller) checkTenant(caller, actor, method.tenantOf(request));
    method.validate(request);
    return await method.handle(request, call);
  };

  const record = createRecorder(tracing);

  const answer: Pipeline["answer"] = async (method, call, exchange) => {
    const startedAt = performance.now();
    try {
      const response = await call.outcome(() => handle(method, call, exchange));
      const encoded = exchange.encode(create(method.desc.output, response));
      record({ method, call, startedAt });
      return { encoded };
    } catch (error) {
      const failure = failureOf(error, call.requestId);
      record({ method, call, startedAt, failure, error });
      return { failure };
    } finally {
      call.close();
    }
  };

  const streams = createStreams(log);

  const open: Pipeline["open"] = (method, call, exchange) => {
    // The span is over when the stream ends.
    const traceId = tracing?.traceId();
    return streams.open({
      method,
      call,
      exchange,
      begin: () => handle(method, call, exchange),
      verify: () => see(method, call, exchange.header),
      record: (ended) => record({ method, call, traceId, ...ended }),
    });
  };

  /** Of a stream the span is that of the beginning alone: it lasts for hours. */
  const inSpan = <Result extends Answer<unknown> | Opened<unknown>>(
    { name }: MethodOf<unknown>,
    { header, system }: Exchange<unknown>,
    work: () => Promise<Result>,
  ): Promise<Result> =>
    tracing
      ? tracing.run({ name, header, system }, work, (result) => ("failure" in result ? result.failure.code : 0))
      : work();

  return {
    receive(header, timeoutMs = callTimeoutMs) {
      const call = new Call(requestIdOf(header), timeoutMs, () => {
        received.delete(call);
        awaited.delete(call);
      });
      received.add(call);
      return call;
    },
    answer: (method, call, exchange) => inSpan(method, exchange, () => answer(method, call, exchange)),
    open: (method, call, exchange) => inSpan(method, exchange, () => open(method, call, exchange)),
    endStreams: streams.endAll,
    endCalls() {
      for (const call of received) call.end(refusal("SHUTTING_DOWN"));
    },
    underWay: () => received.size - awaited.size,
  };
};
