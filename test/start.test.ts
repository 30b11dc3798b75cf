import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, onTestFinished, test } from "vitest";
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

const execute = promisify(execFile);

test.each(["health-check", "token"])("%s says where it looked for a server that is not there", async (command) => {
  const free = createServer().listen(0, "127.0.0.1");
  await once(free, "listening");
  const { port } = free.address() as AddressInfo;
  free.close();
  await once(free, "close");
  const dataDir = await mkdtemp(join(tmpdir(), "auth-service-start-"));
  onTestFinished(() => rm(dataDir, { recursive: true }));
  await writeFile(join(dataDir, "root.secret"), "none");
  const file = fileURLToPath(new URL(`../src/commands/${command}.ts`, import.meta.url));
  const env = { PATH: process.env["PATH"], GRPC_PORT: String(port), DATA_DIR: dataDir };
  await expect(execute(process.execPath, [file], { env, cwd: dataDir })).rejects.toMatchObject({
    code: 1,
    stderr: `nobody listens at http://127.0.0.1:${port}: is the server running, with this configuration?\n`,
  });
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
  ).rejects.toThrow(/^HTTP_HOST, HTTP_PORT: .*EADDRINUSE/);
  expect(await isOpen(freePort ?? 0)).toBe(false);
  taken.close();
});
