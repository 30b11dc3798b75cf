import { randomInt } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, type Server, connect, createServer } from "node:net";
import { onTestFinished } from "vitest";

/** One at which nobody listens, and that no connection gets. */
export const NOBODY_LISTENS = 1;

const isFree = async (port: number): Promise<boolean> => {
  const server = createServer().listen(port, "127.0.0.1");
  try {
    await once(server, "listening");
  } catch {
    return false;
  }
  server.close();
  await once(server, "close");
  return true;
};

/** Below those that connections get: until the server listens, any connection of the whole run could take one of them. */
export const freePort = async (): Promise<number> => {
  for (;;) {
    const port = randomInt(16_384, 32_768);
    if (await isFree(port)) return port;
  }
};

/** Has a server listen on this machine, on a port that is free where none is named. @returns the port. */
export const listenOn = async (server: Server, port = 0): Promise<number> => {
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  return (server.address() as AddressInfo).port;
};

/** One at which somebody else listens for as long as the test lasts. */
export const takenPort = (): Promise<number> => {
  const server = createServer();
  onTestFinished(() => void server.close());
  return listenOn(server);
};

/** Whether new connections are taken. */
export const isOpen = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
