import { once } from "node:events";
import { type AddressInfo, connect, createServer } from "node:net";
import { expect, test } from "vitest";
import { launchService } from "./support/service.ts";

const isOpen = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });

test("a start that finds a port taken says so, and leaves the other port closed", async () => {
  const taken = createServer().listen(0, "127.0.0.1");
  const free = createServer().listen(0, "127.0.0.1");
  await Promise.all([once(taken, "listening"), once(free, "listening")]);
  const [takenPort, freePort] = [taken, free].map((server) => (server.address() as AddressInfo).port);
  free.close();
  await once(free, "close");
  await expect(
    launchService("grpc", { env: { GRPC_PORT: String(freePort) }, httpPort: takenPort ?? 0 }),
  ).rejects.toThrow("EADDRINUSE");
  expect(await isOpen(freePort ?? 0)).toBe(false);
  taken.close();
});
