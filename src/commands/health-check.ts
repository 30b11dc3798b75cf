import { readFile } from "node:fs/promises";
import type { SecureClientSessionOptions } from "node:http2";
import { ConnectError, createClient } from "@connectrpc/connect";
import { Http2SessionManager, createGrpcTransport } from "@connectrpc/connect-node";
import type { Config } from "../config.ts";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../gen/grpc/health/v1/health_pb.ts";
import { runCommand } from "./run.ts";

const TIMEOUT_MS = 2_000;
const OWN_HOSTS: Readonly<Record<string, string>> = { "0.0.0.0": "127.0.0.1", "::": "::1" };

const addressOf = ({ grpc, tls }: Config): string => {
  const host = OWN_HOSTS[grpc.host] ?? grpc.host;
  return `${tls ? "https" : "http"}://${host.includes(":") ? `[${host}]` : host}:${grpc.port}`;
};

// The certificate names the service, not this machine, and whoever could answer here in its place could read its key.
// Where clients need certificates too, the server's own is shown: it serves where one authority signs both.
const tlsOptions = async ({ tls }: Config): Promise<SecureClientSessionOptions> => {
  if (!tls) return {};
  const trust = { rejectUnauthorized: false };
  if (!tls.clientCaFile) return trust;
  const [cert, key] = await Promise.all([readFile(tls.certFile), readFile(tls.keyFile)]);
  return { ...trust, cert, key };
};

const statusOf = async (config: Config, service: string): Promise<Status> => {
  const baseUrl = addressOf(config);
  const sessionManager = new Http2SessionManager(baseUrl, {}, await tlsOptions(config));
  try {
    const health = createClient(Health, createGrpcTransport({ baseUrl, sessionManager }));
    return (await health.check({ service }, { timeoutMs: TIMEOUT_MS })).status;
  } catch (error) {
    const hint = config.tls?.clientCaFile ? " (TLS_CLIENT_CA_FILE must have signed TLS_CERT_FILE for this check)" : "";
    throw new Error(`${ConnectError.from(error).message}${hint}`, { cause: error });
  } finally {
    // An open connection would keep this process for seconds.
    sessionManager.abort();
  }
};

/** `node src/commands/health-check.ts [name]`: for engines that probe by a command; exits 0 exactly while it is SERVING. */
await runCommand(async (config) => {
  const service = process.argv[2] ?? "readiness";
  const status = await statusOf(config, service);
  if (status !== Status.SERVING) throw new Error(`${service || "the server"} is not serving`);
});
