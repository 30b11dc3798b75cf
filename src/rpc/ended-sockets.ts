import type { Server, Socket } from "node:net";
import { Server as TlsServer } from "node:tls";
import { lookNowAndThen } from "../timers.ts";

/** How often ended connections are looked for, in milliseconds. */
const LOOK_MS = 1_000;
/** How long a peer has to close his side, from when he was last heard of. */
const SILENT_MS = 3_000;
/** How long he has in all: he may still be taking what was sent before the end. */
const READ_MS = 30_000;

/** When a connection was found ended, and what had come of its peer when he was last heard of. */
interface Ended {
  readonly at: number;
  readonly heardAt: number;
  readonly bytesRead: number;
}

/**
 * Cuts off peers who leave open what was ended here: of a connection of HTTP/2 that it has ended Node waits for the peer's
 * end without a limit, and keeps its session. No timer of grpc-js counts any more by then.
 */
export const cutOffEnded = (server: Server): void => {
  const endings = new WeakMap<Socket, Ended>();

  const open = lookNowAndThen<Socket>(LOOK_MS, (socket) => {
    if (!socket.writableEnded) return;
    const now = performance.now();
    const { bytesRead } = socket;
    const ended = endings.get(socket);
    // What the system has taken may still be on its way to him, and is lost where he speaks to a socket that is no more, as
    // whoever reads HTTP/2 does to ask for more.
    if (ended?.bytesRead !== bytesRead) endings.set(socket, { at: ended?.at ?? now, heardAt: now, bytesRead });
    else if (socket.writableFinished && now - ended.heardAt > SILENT_MS) socket.destroy();
    if (ended && now - ended.at > READ_MS) socket.destroy();
  });

  server.on(server instanceof TlsServer ? "secureConnection" : "connection", (socket: Socket) => {
    open.add(socket);
    socket.once("close", () => open.delete(socket));
  });
};
