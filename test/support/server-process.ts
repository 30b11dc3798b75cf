import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { inject, onTestFinished } from "vitest";
import { CHILD_ENV } from "./child-env.ts";
import { freePort } from "./ports.ts";
import { SECRET_PEPPERS } from "./root.ts";

/** The process that people start and signal: `node src/main.ts`. */
interface LaunchedProcess {
  readonly process: ChildProcess;
  readonly httpPort: number;
  /** Resolves with the exit code, or the signal that ended it. */
  readonly exit: Promise<number | string>;
  /** All that it has said on stdout by now. */
  readonly said: () => string;
}

/** One that serves. */
export interface ServerProcess extends LaunchedProcess {
  readonly grpcPort: number;
}

type Environment = Readonly<Record<string, string>>;

export const launchProcess = async (databaseUrl: string, env: Environment): Promise<LaunchedProcess> => {
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
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (output += text));
  return { process: child, httpPort, exit, said: () => output };
};

export const startProcess = async (databaseUrl: string, env: Environment): Promise<ServerProcess> => {
  const launched = await launchProcess(databaseUrl, env);
  const { process: child, exit, said } = launched;
  const serving = Promise.withResolvers<number>();
  child.stdout?.on("data", () => {
    const [, port] = /"grpc":"127\.0\.0\.1:(\d+)"[^\n]*"msg":"serving"/.exec(said()) ?? [];
    if (port) serving.resolve(Number(port));
  });
  void exit.then((code) => serving.reject(new Error(`the server ended with ${code}: ${said()}`)));
  return { ...launched, grpcPort: await serving.promise };
};
