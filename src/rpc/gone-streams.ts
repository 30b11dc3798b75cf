import type { Http2Server } from "node:http2";

/**
 * Has grpc-js answer nothing to who has gone before his call is told of, by a reset that was read with it: a call of an
 * unknown method or another content type it refuses at once, which throws on such a stream, and ends the process.
 */
export const answerNoneGone = (server: Http2Server): void => {
  server.on("stream", (stream) => {
    if (stream.destroyed || stream.closed) stream.respond = () => undefined;
  });
};
