import type { Socket } from "node:net";
import type { HttpRequest, HttpResponse } from "./http.ts";

/** How many requests a connection of HTTP/1.1 may have under way: browsers and proxies have one. */
const UNDER_WAY_MAX = 32;

const underWay = new WeakMap<Socket, number>();

const count = (socket: Socket, more: 1 | -1): number => {
  const now = (underWay.get(socket) ?? 0) + more;
  underWay.set(socket, now);
  return now;
};

/**
 * Whether a request is one too many of its connection, which is then ended: Node begins all that come in one go, which are
 * thousands in 64 KiB, and keeps their answers until they are read.
 */
export const isTooMany = (request: HttpRequest, response: HttpResponse): boolean => {
  if ("stream" in request) return false;
  const { socket } = request;
  if (count(socket, 1) > UNDER_WAY_MAX) socket.destroy();
  response.once("close", () => {
    count(socket, -1);
    // Whoever waits behind another's answer to write on is told by nothing else, and would wait for ever.
    response.emit("drain");
  });
  return socket.destroyed;
};
