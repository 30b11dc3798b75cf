import { constants } from "node:http2";
import { createContextKey } from "@connectrpc/connect";
import { TIMER_MAX_MS } from "../config-values.ts";
import type { HttpRequest, HttpResponse } from "./http.ts";
import { giveUpUntaken } from "./untaken-answers.ts";

/** After CALL_TIMEOUT, for the answer that says so to be read. */
const GRACE_MS = 1_000;

/** A message that is coming. */
interface Body {
  /** Whoever reads it gets this error at once, and no more of it. */
  giveUp(why: Error): void;
}

/** Where a call finds the message that it waits for. */
export const bodyKey = createContextKey<Body | undefined>(undefined);

/**
 * Lets the reader of a message be told to stop: nothing else ends its wait, and to destroy a request of HTTP/1.1 takes the
 * connection with it, before the answer.
 */
export const bodyOf = (request: HttpRequest): Body => {
  const chunks = request[Symbol.asyncIterator]();
  let given: Error | undefined;
  let stop: ((why: Error) => void) | undefined;
  const reader: AsyncIterableIterator<unknown> = {
    next: () =>
      new Promise((resolve, reject) => {
        if (given) return reject(given);
        stop = reject;
        chunks.next().then(resolve, reject);
      }),
    // Its own would take the request from its connection, which then would read no more.
    return: () => Promise.resolve({ done: true, value: undefined }),
    [Symbol.asyncIterator]: () => reader,
  };
  Object.assign(request, { [Symbol.asyncIterator]: () => reader });
  return {
    giveUp(why) {
      given = why;
      stop?.(why);
    },
  };
};

/** A message that comes for longer than a call lasts is cut off. */
const boundBody = (request: HttpRequest, timeoutMs: number): void => {
  // There is none to come, and nobody who would read its end.
  if ("stream" in request && request.stream.endAfterHeaders) return;
  const cutOff = () => {
    // A connection of HTTP/1.1 serves others by now, where the message is there.
    if (request.complete) return;
    if ("stream" in request) request.stream.close(constants.NGHTTP2_CANCEL);
    else request.destroy();
  };
  const late = setTimeout(cutOff, Math.min(timeoutMs + GRACE_MS, TIMER_MAX_MS));
  request.once("end", () => clearTimeout(late)).once("close", () => clearTimeout(late));
};

/**
 * Sees to what comes of a message after its answer, which connect reads no more. A stream of HTTP/2 is closed, for the peer
 * would wait until the end of the connection (RFC 9113, 8.1). HTTP/1.1 has the connection alone, whose next request comes
 * after the rest: that is read and thrown away.
 */
const letGo = (request: HttpRequest, response: HttpResponse): void => {
  if (!("stream" in request)) {
    response.once("finish", () => {
      // Whose message nobody has begun to read, Node itself throws away; told twice, it forgets that it does.
      if (request.complete || request.listenerCount("readable") === 0) return;
      request.removeAllListeners("readable").resume();
    });
    return;
  }
  const { stream } = request;
  const close = () => {
    if (!stream.endAfterHeaders && !stream.readableEnded) stream.close(constants.NGHTTP2_NO_ERROR);
  };
  // After the trailers, which a native gRPC call has its status in.
  stream.once("wantTrailers", () => setImmediate(close));
};

/**
 * Gives up an answer that is whole, and of which nobody takes anything for longer than a call lasts: with it its connection
 * is not idle, and lasts.
 */
const boundAnswer = (response: HttpResponse, limitMs: number): void => {
  const giveUp = () => {
    if ("stream" in response) return giveUpUntaken(response.stream, limitMs);
    response.setTimeout(limitMs, () => response.destroy());
    // It is the connection's own, whose next answer, asked for meanwhile, may be a stream in which nothing happens.
    response.prependOnceListener("finish", () => response.socket?.setTimeout(0));
  };
  const end = response.end.bind(response) as (...args: unknown[]) => typeof response;
  const endBounded = (...args: unknown[]) => {
    giveUp();
    return end(...args);
  };
  response.end = endBounded as never;
};

/** Bounds what a request may take of time: its message, before its answer and after it, and its answer. */
export const boundRequest = (request: HttpRequest, response: HttpResponse, timeoutMs: number): void => {
  // Node first looks whether anybody listens, and tells in a later turn that the peer has gone: connect listens no more by
  // then where the response's end was told between, and an error that nobody hears ends the process.
  request.on("error", () => undefined);
  boundBody(request, timeoutMs);
  boundAnswer(response, timeoutMs);
  letGo(request, response);
};
