import { readFile } from "node:fs/promises";
import type { SecureClientSessionOptions } from "node:http2";
import { ConnectError, type Interceptor, type Transport } from "@connectrpc/connect";
import { Http2SessionManager, createGrpcTransport } from "@connectrpc/connect-node";
import type { Config } from "../config.ts";
import { addressText } from "../config-values.ts";

const OWN_HOSTS: Readonly<Record<string, string>> = { "0.0.0.0": "127.0.0.1", "::": "::1" };

const addressOf = ({ grpc, tls }: Config): string => {
  const host = OWN_HOSTS[grpc.host] ?? grpc.host;
  return `${tls ? "https" : "http"}://${addressText(host, grpc.port)}`;
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

const isNobodyThere = (error: unknown) =>
  error instanceof ConnectError && (error.cause as NodeJS.ErrnoException | undefined)?.code === "ECONNREFUSED";

/** Calls the server that runs on this machine with the same configuration. */
export const callOwnServer = async <T>(
  config: Config,
  call: (transport: Transport) => Promise<T>,
  interceptors: Interceptor[] = [],
): Promise<T> => {
  const baseUrl = addressOf(config);
  const sessionManager = new Http2SessionManager(baseUrl, {}, await tlsOptions(config));
  try {
    return await call(createGrpcTransport({ baseUrl, sessionManager, interceptors }));
  } catch (error) {
    if (!isNobodyThere(error)) throw error;
    throw new Error(`nobody listens at ${baseUrl}: is the server running, with this configuration?`, { cause: error });
  } finally {
    // An open connection would keep this process for seconds.
    sessionManager.abort();
  }
};
