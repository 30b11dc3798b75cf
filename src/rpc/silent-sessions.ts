import type { ServerHttp2Session } from "node:http2";
import { afterSilence } from "../timers.ts";

/**
 * Ends a connection of HTTP/2 whose peer is no more, of which nothing else tells: where he goes while Node writes to him over
 * TLS, that write never ends, nothing is read any more, and the connection and all its streams are kept for ever.
 * @param silentMs how long nothing may go on before the peer is asked whether he is there, and how long he has to say so.
 */
export const endSilent = (session: ServerHttp2Session, silentMs: number): void => {
  const end = () => {
    if (session.destroyed) return;
    // To destroy a session waits for its last write: an ended socket is cut off.
    session.socket.destroySoon();
    session.destroy();
  };
  const ask = () => {
    if (session.destroyed) return;
    const heard = afterSilence(silentMs, end);
    session.ping(() => {
      heard();
      session.setTimeout(silentMs);
    });
  };
  session.setTimeout(silentMs);
  session.on("timeout", ask);
};
