import type { Server, Socket } from "node:net";
import { Server as TlsServer } from "node:tls";

/** How often ended connections are looked for, which is how long a peer has to close his side, in milliseconds. */
const LOOK_MS = 1_000;
/** How long he has where he has not taken yet what was sent before the end. */
const READ_MS = 30_000;

/**
 * Cuts off peers who leave open what was ended here: of a connection of HTTP/2 that it has ended Node waits for the peer's
 * end without a limit, and keeps its session. No timer of grpc-js counts any more by then.
 */
export const cutOffEnded = (server: Server): void => {
  const open = new Set<Socket>();
  const endedAt = new WeakMap<Socket, number>();
  let timer: NodeJS.Timeout | undefined;

  const look = () => {
    const now = performance.now();
    for (const socket of open) {
      if (!socket.writableEnded) continue;
      const since = endedAt.get(socket);
      if (since === undefined) endedAt.set(socket, now);
      else if (socket.writableFinished || now - since > READ_MS) socket.destroy();
    }
    timer = undefined;
    if (open.size > 0) lookLater();
  };

  // Only while there is something to look at: a server that is no more leaves no timer.
  const lookLater = () => {
    timer ??= setTimeout(look, LOOK_MS).unref();
  };

  server.on(server instanceof TlsServer ? "secureConnection" : "connection", (socket: Socket) => {
    open.add(socket);
    socket.once("close", () => open.delete(socket));
    lookLater();
  });
};
