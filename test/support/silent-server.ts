import { type Socket, createServer } from "node:net";
import { onTestFinished } from "vitest";
import { listenOn } from "./ports.ts";

/** Takes connections and says nothing, so that whoever calls is in the middle of it. */
export const startSilentServer = async () => {
  const sockets: Socket[] = [];
  const server = createServer((socket) => void sockets.push(socket.on("error", () => undefined).resume()));
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { port: await listenOn(server), sockets };
};
