import { once } from "node:events";
import { type AddressInfo, type Socket, createServer } from "node:net";
import { onTestFinished } from "vitest";

/** Takes connections and says nothing, so that whoever calls is in the middle of it. */
export const startSilentServer = async () => {
  const sockets: Socket[] = [];
  const server = createServer((socket) => void sockets.push(socket.on("error", () => undefined).resume()));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { port: (server.address() as AddressInfo).port, sockets };
};
