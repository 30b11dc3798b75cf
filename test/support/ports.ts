import { randomInt } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:net";

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
