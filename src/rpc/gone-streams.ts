import type { Http2SecureServer, Http2Server } from "node:http2";

const nothing = () => undefined;

/**
 * Has nothing said to who has gone before his call is told of, by a reset that was read with it. It would throw, and end
 * the process: grpc-js refuses a call of an unknown method or another content type at once, and Node asks at once for
 * a message that waits to be asked for (100-continue).
 */
export const answerNoneGone = (server: Http2Server | Http2SecureServer): void => {
  server.prependListener("stream", (stream) => {
    if (stream.destroyed || stream.closed) Object.assign(stream, { respond: nothing, additionalHeaders: nothing });
  });
};
