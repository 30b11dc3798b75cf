import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { inject, onTestFinished } from "vitest";
import { OrgService } from "../../src/gen/org/v1/org_pb.ts";
import { ServiceIdentityService } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { CHILD_ENV } from "./child-env.ts";
import { freePort } from "./ports.ts";
import { SECRET_PEPPERS } from "./root.ts";

/** The process that people start and signal: `node src/main.ts`. */
export interface ServerProcess {
  readonly process: ChildProcess;
  readonly grpcPort: number;
  readonly httpPort: number;
  /** Resolves with the exit code, or the signal that ended it. */
  readonly exit: Promise<number | string>;
  /** All that it has said on stdout by now. */
  readonly said: () => string;
}

export const startProcess = async (
  databaseUrl: string,
  env: Readonly<Record<string, string>>,
): Promise<ServerProcess> => {
  const httpPort = await freePort();
  const child = spawn(process.execPath, ["src/main.ts"], {
    env: {
      ...CHILD_ENV,
      NODE_ENV: "test",
      DATABASE_URL: databaseUrl,
      JWT_KEYS_FILE: inject("jwtKeysFile"),
      SECRET_PEPPERS,
      GRPC_HOST: "127.0.0.1",
      GRPC_PORT: "0",
      HTTP_HOST: "127.0.0.1",
      HTTP_PORT: String(httpPort),
      ...env,
    },
    stdio: ["ignore", "pipe", "inherit"],
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  const exit = once(child, "exit").then(([code, signal]) => (code ?? signal) as number | string);
  const serving = Promise.withResolvers<number>();
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output += text;
    const [, port] = /"grpc":"127\.0\.0\.1:(\d+)"[^\n]*"msg":"serving"/.exec(output) ?? [];
    if (port) serving.resolve(Number(port));
  });
  void exit.then((code) => serving.reject(new Error(`the server ended with ${code}: ${output}`)));
  return { process: child, grpcPort: await serving.promise, httpPort, exit, said: () => output };
};

/** Clients of both ports, signed in as root. */
export const clientsOf = async ({ grpcPort, httpPort }: ServerProcess, secret: string) => {
  const grpc = createGrpcTransport({ baseUrl: `http://127.0.0.1:${grpcPort}` });
  const { serviceToken } = await createClient(ServiceIdentityService, grpc).authenticateService({
    key: "root",
    secret,
  });
  const headers = { authorization: `Bearer ${serviceToken}` };
  const connect = createConnectTransport({ baseUrl: `http://127.0.0.1:${httpPort}`, httpVersion: "1.1" });
  return { headers, grpc: createClient(OrgService, grpc), connect: createClient(OrgService, connect) };
};
