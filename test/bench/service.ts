import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { OrgService } from "../../src/gen/org/v1/org_pb.ts";
import { ServiceIdentityService } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import type { LoadOrder, LoadReport } from "./load.ts";

const MAIN = fileURLToPath(new URL("../../src/main.ts", import.meta.url));
const LOAD = fileURLToPath(new URL("./load.ts", import.meta.url));
/** As in package.json's `start`. */
const START_FLAGS = ["--expose-gc", "--max-semi-space-size=64"];
const GRPC_PORT = 50951;
const HTTP_PORT = 8981;

/** A service in a process of its own, as `npm start` runs it, on the embedded database. */
export interface BenchService {
  readonly origin: string;
  /** Empty where the service has a database of its own. */
  readonly databaseUrl: string;
  /** From the start of the process to the line that says it is ready. */
  readonly startSeconds: number;
  readonly rootSecret: string;
  /** Clients of root, and root's token. */
  readonly token: string;
  readonly services: ReturnType<typeof createClient<typeof ServiceIdentityService>>;
  readonly org: ReturnType<typeof createClient<typeof OrgService>>;
  cpuSeconds(): Promise<number>;
  residentMegabytes(): Promise<number>;
  stop(): Promise<void>;
}

export const temporaryFolder = (): Promise<string> => mkdtemp(join(tmpdir(), "auth-bench-"));
export const removeFolder = (folder: string): Promise<void> => rm(folder, { recursive: true, force: true });

const metric = async (name: string): Promise<number> => {
  const text = await (await fetch(`http://127.0.0.1:${HTTP_PORT}/metrics`)).text();
  return Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1]);
};

const untilReady = async (child: ChildProcess): Promise<void> => {
  if (!child.stdout) throw new Error("the service has no stdout");
  for await (const line of createInterface({ input: child.stdout })) if (/"serving"|^ready:/.test(line)) return;
  throw new Error("the service ended before it was ready");
};

export const startBenchService = async (
  dataDir: string,
  env: Readonly<Record<string, string>> = {},
): Promise<BenchService> => {
  const started = performance.now();
  const child = spawn(process.execPath, [...START_FLAGS, MAIN], {
    env: {
      ...process.env,
      NODE_ENV: "development",
      NODE_COMPILE_CACHE: join(dataDir, "compile-cache"),
      DATA_DIR: dataDir,
      GRPC_PORT: String(GRPC_PORT),
      HTTP_PORT: String(HTTP_PORT),
      ...env,
    },
    stdio: ["ignore", "pipe", "inherit"],
  });
  await untilReady(child);
  const startSeconds = (performance.now() - started) / 1_000;
  // What the service logs is part of what is measured; it must be read, not kept.
  child.stdout.resume();
  const origin = `http://127.0.0.1:${GRPC_PORT}`;
  const rootSecret = (await readFile(join(dataDir, "root.secret"), "utf8")).trim();
  const { serviceToken: token } = await createClient(
    ServiceIdentityService,
    createGrpcTransport({ baseUrl: origin }),
  ).authenticateService({ key: "root", secret: rootSecret, ttl: { seconds: 86_400n, nanos: 0 } });
  const transport = createGrpcTransport({
    baseUrl: origin,
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", `Bearer ${token}`);
        return next(request);
      },
    ],
  });
  return {
    origin,
    databaseUrl: env["DATABASE_URL"] ?? "",
    startSeconds,
    rootSecret,
    token,
    services: createClient(ServiceIdentityService, transport),
    org: createClient(OrgService, transport),
    cpuSeconds: () => metric("process_cpu_seconds_total"),
    residentMegabytes: async () => (await metric("process_resident_memory_bytes")) / 1_048_576,
    async stop() {
      child.kill("SIGTERM");
      await once(child, "exit");
    },
  };
};

export interface Measured extends LoadReport {
  /** Of the service's process, whole, for each call. */
  readonly cpuMicroseconds: number;
}

/** Loads one method from a process of its own. */
export const measure = async (
  service: BenchService,
  order: Pick<LoadOrder, "path" | "messages"> & Partial<LoadOrder>,
): Promise<Measured> => {
  const child = fork(LOAD);
  const headers = { authorization: `Bearer ${service.token}` };
  const full: LoadOrder = { origin: service.origin, connections: 4, concurrency: 64, seconds: 3, headers, ...order };
  const cpuBefore = await service.cpuSeconds();
  child.send(full);
  const [report] = (await once(child, "message")) as [LoadReport];
  const cpu = (await service.cpuSeconds()) - cpuBefore;
  // The warm-up's calls are not in the report, but their work is in the processor time.
  const seconds = cpu * 0.9;
  return { ...report, cpuMicroseconds: (seconds / report.calls) * 1_000_000 };
};

export const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
