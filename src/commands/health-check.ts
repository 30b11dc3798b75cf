import { type Transport, createClient } from "@connectrpc/connect";
import { type Config, ConfigError } from "../config.ts";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../gen/grpc/health/v1/health_pb.ts";
import { callOwnServer } from "./own-server.ts";
import { runCommand } from "./run.ts";

const TIMEOUT_MS = 2_000;

const statusOf = async (config: Config, service: string): Promise<Status> => {
  try {
    const ask = async (transport: Transport) =>
      (await createClient(Health, transport).check({ service }, { timeoutMs: TIMEOUT_MS })).status;
    // A server goes on with its former certificate where the file has one that it does not take.
    return await callOwnServer(config, ask, { anybody: true });
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    const hint = config.tls?.clientCaFile ? " (TLS_CLIENT_CA_FILE must have signed TLS_CERT_FILE for this check)" : "";
    throw new Error(`${(error as Error).message}${hint}`, { cause: error });
  }
};

const check = async (config: Config, service = "readiness") => {
  const status = await statusOf(config, service);
  if (status !== Status.SERVING) throw new Error(`${service || "the server"} is not serving`);
};

/** `node src/commands/health-check.ts [name]`: for engines that probe by a command; exits 0 exactly while it is SERVING. */
await runCommand((config, { positionals }) => check(config, positionals[0]), { allowPositionals: true });
