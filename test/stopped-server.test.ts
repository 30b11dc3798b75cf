import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { expect, inject, onTestFinished, test } from "vitest";
import { CHILD_ENV } from "./support/child-env.ts";
import { createRootedDatabase } from "./support/database.ts";
import { SECRET_PEPPERS } from "./support/root.ts";
import { clientsOf } from "./support/service.ts";

// Serves until it is told to stop, then says what still keeps its process alive, and ends once nothing does.
const SCRIPT = `
  import { once } from "node:events";
  import { parseConfig } from "./src/config.ts";
  import { peppersOf } from "./src/dev-keys.ts";
  import { createLog } from "./src/log.ts";
  import { startServer } from "./src/server.ts";
  const config = parseConfig(process.env);
  const log = createLog("silent");
  const peppers = await peppersOf(config, log);
  const { JWT_KEYS_FILE: jwtKeysFile, DATABASE_URL: databaseUrl } = process.env;
  const server = await startServer({ config, databaseUrl, peppers, jwtKeysFile, log });
  process.stdout.write(JSON.stringify(server));
  await once(process.stdin, "data");
  process.stdin.destroy();
  await server.stop();
  process.stderr.write(JSON.stringify(process.getActiveResourcesInfo()));
`;

test("once a server has stopped, none of its timers is left, and its process ends by itself", async () => {
  const database = await createRootedDatabase();
  onTestFinished(() => database.drop());
  const env = {
    ...CHILD_ENV,
    NODE_ENV: "test",
    DATABASE_URL: database.url,
    JWT_KEYS_FILE: inject("jwtKeysFile"),
    SECRET_PEPPERS,
    GRPC_HOST: "127.0.0.1",
    // A free one. Of HTTP it turns the port off.
    GRPC_PORT: "0",
    HTTP_PORT: "0",
  };
  const child = spawn(process.execPath, ["--eval", SCRIPT], { env, stdio: "pipe" });
  onTestFinished(() => void child.kill("SIGKILL"));
  const said = text(child.stderr);
  const [served] = (await once(child.stdout, "data")) as [Buffer];
  const ports = JSON.parse(String(served)) as { readonly grpcPort: number };
  expect(ports).toEqual({ grpcPort: expect.any(Number) as number });
  const { services } = clientsOf("grpc", { ...ports, httpPort: undefined })({});
  await services.authenticateService({ key: "root", secret: inject("rootSecret") });
  child.stdin.write("stop");
  const left = JSON.parse(await said) as string[];
  // Sockets are as good as closed: their other ends have still to hear of it.
  expect(left.filter((resource) => !["PipeWrap", "TCPSocketWrap"].includes(resource))).toEqual([]);
  expect(child.exitCode ?? (await once(child, "exit"))[0]).toBe(0);
});
