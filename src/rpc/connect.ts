import type { DescMethodServerStreaming, DescMethodUnary, Message } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter, type HandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { TIMER_MAX_MS } from "../config-values.ts";
import type { HeaderReader } from "./caller.ts";
import type { HttpHandler } from "./http.ts";
import type { Call } from "./call.ts";
import type { Failure } from "./failure.ts";
import type { Method, StreamMethod, UnaryMethod } from "./methods.ts";
import type { Pipeline } from "./pipeline.ts";

const headersOf =
  ({ requestHeader }: HandlerContext): HeaderReader =>
  (name) =>
    requestHeader.get(name) ?? undefined;

const endReason = ({ signal }: HandlerContext) =>
  signal.reason instanceof ConnectError && signal.reason.code === Code.DeadlineExceeded ? "DEADLINE" : "CANCELLED";

const errorOf = ({ code, message, details }: Failure, { requestId }: Call) =>
  new ConnectError(message, code, { "x-request-id": requestId }, [...details]);

const endWith = (context: HandlerContext, call: Call) => {
  if (context.signal.aborted) call.end(endReason(context));
  context.signal.addEventListener("abort", () => call.end(endReason(context)), { once: true });
};

const registerUnary = (router: ConnectRouter, pipeline: Pipeline, method: UnaryMethod) =>
  router.rpc(method.desc as DescMethodUnary, async (request, context) => {
    const header = headersOf(context);
    const call = pipeline.receive(header, context.timeoutMs());
    endWith(context, call);
    const exchange = { header, decode: () => request, encode: (response: Message) => response };
    const answer = await pipeline.answer(method, call, exchange);
    if ("failure" in answer) throw errorOf(answer.failure, call);
    context.responseHeader.set("x-request-id", call.requestId);
    return answer.encoded;
  });

const registerStream = (router: ConnectRouter, pipeline: Pipeline, method: StreamMethod) =>
  router.rpc(method.desc as DescMethodServerStreaming, async function* (request, context) {
    const header = headersOf(context);
    const call = pipeline.receive(header, context.timeoutMs() ?? Infinity);
    endWith(context, call);
    context.responseHeader.set("x-request-id", call.requestId);
    const exchange = { header, decode: () => request, encode: (response: Message) => response };
    const opened = await pipeline.open(method, call, exchange);
    if ("failure" in opened) throw errorOf(opened.failure, call);
    const failure = yield* opened.messages;
    if (failure) throw errorOf(failure, call);
  });

const register = (router: ConnectRouter, pipeline: Pipeline, method: Method) =>
  method.type === "unary" ? registerUnary(router, pipeline, method) : registerStream(router, pipeline, method);

/** Connect calls these INTERNAL, as if the fault were ours: a message that it cannot decode, or not decompress. */
const SENDERS_FAULT = /^(parse binary: |decompression failed|received compressed envelope)/;

/** What it says of broken JSON, up to where it quotes what was sent: a code as a number, a secret without quotes. */
const UNQUOTED = /^cannot decode .+? from JSON(?:: (?:list item #\d+: )?expected (?:message |enum )?[\w.]+)?/;

/** Connect aborts the call with its error before it writes it: the one moment at which that can be mended. */
const mendError = ({ signal }: HandlerContext): void =>
  signal.addEventListener(
    "abort",
    () => {
      const error: unknown = signal.reason;
      if (!(error instanceof ConnectError)) return;
      if (SENDERS_FAULT.test(error.rawMessage)) Object.assign(error, { code: Code.InvalidArgument });
      const [rawMessage] = UNQUOTED.exec(error.rawMessage) ?? [];
      if (rawMessage !== undefined) Object.assign(error, { rawMessage });
    },
    { once: true },
  );

/** Serves the methods over Connect, gRPC-Web and JSON; what is none of them goes to `fallback`. */
export const createConnectHandler = (
  pipeline: Pipeline,
  methods: readonly Method[],
  readMaxBytes: number,
  fallback: HttpHandler,
): HttpHandler =>
  connectNodeAdapter({
    routes: (router) => methods.forEach((method) => register(router, pipeline, method)),
    requestGate: mendError,
    readMaxBytes,
    // A caller's own deadline is his business, as long as a timer can hold it.
    maxTimeoutMs: TIMER_MAX_MS,
    fallback,
  });
