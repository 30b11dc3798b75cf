import type { Http2Session, ServerHttp2Session } from "node:http2";
import type { HttpRequest } from "./http.ts";

/** For the peer to close it himself, in milliseconds. */
const GOODBYE_MS = 1_000;

const dismissed = new WeakSet<Http2Session>();

/**
 * Whether a request has come behind the end of its connection: Node takes what arrives in the turn of the loop in which it
 * is about to send GOAWAY, by which the caller learns that it was not begun (RFC 9113, 6.8), and sends it again elsewhere.
 */
export const isLate = (request: HttpRequest): boolean => {
  if (!("stream" in request)) return false;
  const { session } = request.stream;
  return session !== undefined && dismissed.has(session);
};

/**
 * Ends a connection that no request was on for so long, as grpc-js does on its port and Node does with HTTP/1.1. It takes
 * some 80 KB, which its peer, whom nobody knows, could otherwise hold for ever, thousands of times.
 */
export const endIdle = (session: ServerHttp2Session, idleMs: number): void => {
  let requests = 0;
  let timer: NodeJS.Timeout | undefined;
  const after = (ms: number, end: () => void) => {
    timer = setTimeout(() => session.closed || session.destroyed || end(), ms).unref();
  };
  const wait = () =>
    after(idleMs, () => {
      // What comes behind it is not begun, and so its caller may send it again. To close would wait for the peer.
      dismissed.add(session);
      session.goaway();
      after(GOODBYE_MS, () => session.destroy());
    });
  session.on("stream", (stream) => {
    if (dismissed.has(session)) return;
    requests++;
    clearTimeout(timer);
    stream.once("close", () => --requests === 0 && wait());
  });
  session.once("close", () => clearTimeout(timer));
  wait();
};
