import type { DescMethodServerStreaming, DescMethodUnary, Message } from "@bufbuild/protobuf";
import { type ConnectRouter, type HandlerContext, createContextValues } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { TIMER_MAX_MS } from "../config-values.ts";
import { createArrivals, errorOf } from "./connect-arrivals.ts";
import type { HeaderReader } from "./caller.ts";
import { shortTimeout } from "./grpc-headers.ts";
import type { HttpHandler, HttpRequest } from "./http.ts";
import { JsonText } from "./json-text.ts";
import { READ_OPTIONS, messageLimit } from "./message-limits.ts";
import type { Method, StreamMethod, UnaryMethod } from "./methods.ts";
import type { Pipeline } from "./pipeline.ts";
import { bodyKey, bodyOf } from "./request-bodies.ts";

type Gate = (context: HandlerContext) => Promise<void>;

const optionsOf = ({ desc }: Method, requestGate: Gate, readMaxBytes: number) => ({
  requestGate,
  binaryOptions: READ_OPTIONS,
  jsonOptions: { ignoreUnknownFields: true, textDecoder: new JsonText(desc.input) },
  readMaxBytes,
});

const registerUnary = (router: ConnectRouter, pipeline: Pipeline, method: UnaryMethod, readMaxBytes: number) => {
  const arrivals = createArrivals(
    (header, { timeoutMs }) => pipeline.receive(header, timeoutMs()),
    (call, exchange) => pipeline.answer(method, call, exchange),
  );
  const handle = async (request: Message, context: HandlerContext) => {
    const { call, message, answering } = arrivals.of(context);
    message.deliver(request);
    const answer = await answering;
    if ("failure" in answer) throw errorOf(answer.failure, call);
    context.responseHeader.set("x-request-id", call.requestId);
    return answer.encoded;
  };
  router.rpc(method.desc as DescMethodUnary, handle, optionsOf(method, arrivals.gate, readMaxBytes));
};

const registerStream = (router: ConnectRouter, pipeline: Pipeline, method: StreamMethod, readMaxBytes: number) => {
  const receive = (header: HeaderReader, { timeoutMs, responseHeader }: HandlerContext) => {
    const call = pipeline.receive(header, timeoutMs() ?? Infinity);
    // An answer's header is sent before it is known whether it is a refusal.
    responseHeader.set("x-request-id", call.requestId);
    return call;
  };
  const arrivals = createArrivals(receive, (call, exchange) => pipeline.open(method, call, exchange));
  async function* handle(request: Message, context: HandlerContext) {
    const { call, message, answering } = arrivals.of(context);
    message.deliver(request);
    const opened = await answering;
    if ("failure" in opened) throw errorOf(opened.failure, call);
    const failure = yield* opened.messages;
    if (failure) throw errorOf(failure, call);
  }
  router.rpc(method.desc as DescMethodServerStreaming, handle, optionsOf(method, arrivals.gate, readMaxBytes));
};

const register = (router: ConnectRouter, pipeline: Pipeline, method: Method, messageMaxBytes: number) => {
  const readMaxBytes = messageLimit(method.rule, messageMaxBytes);
  if (method.type === "unary") registerUnary(router, pipeline, method, readMaxBytes);
  else registerStream(router, pipeline, method, readMaxBytes);
};

/** A caller's own deadline is his business: connect would refuse one that no timer can hold, and gRPC's is shortened too. */
const shortenDeadline = ({ headers }: HttpRequest): void => {
  const { "connect-timeout-ms": ms = "", "grpc-timeout": timeout = "" } = headers;
  if (/^\d{1,10}$/.test(String(ms)) && Number(ms) > TIMER_MAX_MS) headers["connect-timeout-ms"] = String(TIMER_MAX_MS);
  const short = shortTimeout(String(timeout));
  if (short !== undefined) headers["grpc-timeout"] = short;
};

/** Serves the methods over Connect, gRPC-Web and JSON; what is none of them goes to `fallback`. */
export const createConnectHandler = (
  pipeline: Pipeline,
  methods: readonly Method[],
  messageMaxBytes: number,
  fallback: HttpHandler,
): HttpHandler => {
  const handler = connectNodeAdapter({
    routes: (router) => methods.forEach((method) => register(router, pipeline, method, messageMaxBytes)),
    contextValues: (request) => createContextValues().set(bodyKey, bodyOf(request)),
    maxTimeoutMs: TIMER_MAX_MS,
    fallback,
  });
  return (request, response) => {
    shortenDeadline(request);
    try {
      handler(request, response);
    } catch {
      // All that it throws at once is that the request's authority is none: the caller's fault, which must end nothing else.
      response.statusCode = 400;
      response.end();
    }
  };
};
