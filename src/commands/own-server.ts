import type { SecureClientSessionOptions } from "node:http2";
import { Code, ConnectError, type Interceptor, type Transport } from "@connectrpc/connect";
import { Http2SessionManager, createGrpcTransport } from "@connectrpc/connect-node";
import type { Config } from "../config.ts";
import { addressText } from "../config-values.ts";
import { parseCertificates, readCertificateFile } from "../rpc/certificate-files.ts";

const OWN_HOSTS: Readonly<Record<string, string>> = { "0.0.0.0": "127.0.0.1", "::": "::1" };

const addressOf = ({ grpc, tls }: Config): string => {
  const host = OWN_HOSTS[grpc.host] ?? grpc.host;
  return `${tls ? "https" : "http"}://${addressText(host, grpc.port)}`;
};

// The certificate names the service, not this machine: whoever proves that he has its key is the server. Anybody else may
// have got the port while the server was away, and would be told the secrets and people that commands send. Of the file
// the first certificate alone is trusted: those who signed it have signed others. Where clients need certificates too,
// the server's own is shown: it serves where one authority signs both.
const tlsOptions = async ({ tls }: Config, anybody: boolean): Promise<SecureClientSessionOptions> => {
  if (!tls) return {};
  // A server goes on while its file is away or broken, and whoever takes anybody for it does not need the file either.
  const cert = anybody && !tls.clientCaFile ? undefined : await readCertificateFile("certFile", tls.certFile);
  const trust =
    anybody || !cert
      ? { rejectUnauthorized: false }
      : {
          ca: String(parseCertificates("certFile", cert)[0]),
          allowPartialTrustChain: true,
          checkServerIdentity: () => undefined,
        };
  return tls.clientCaFile ? { ...trust, cert, key: await readCertificateFile("keyFile", tls.keyFile) } : trust;
};

const ignore = () => undefined;

/** Of a session that breaks the manager lets go before that says why: nobody would hear it, which ends a process. */
class Sessions extends Http2SessionManager {
  override async request(...args: Parameters<Http2SessionManager["request"]>) {
    const stream = await super.request(...args);
    if (!stream.session?.listeners("error").includes(ignore)) stream.session?.on("error", ignore);
    return stream;
  }
}

const causeOf = (error: unknown): string | undefined =>
  error instanceof ConnectError ? (error.cause as NodeJS.ErrnoException | undefined)?.code : undefined;

const isLate = (error: unknown): error is ConnectError =>
  error instanceof ConnectError && error.code === Code.DeadlineExceeded;

/** How much longer than a call may take there its answer may be under way: the server itself says what took too long. */
const ANSWER_MS = 2_000;

interface CallOptions {
  readonly interceptors?: Interceptor[];
  /** Whether whoever answers is taken for the server: for what tells nothing. */
  readonly anybody?: boolean;
}

/** Calls the server that runs on this machine with the same configuration; none of the calls waits without an end. */
export const callOwnServer = async <T>(
  config: Config,
  call: (transport: Transport) => Promise<T>,
  { interceptors = [], anybody = false }: CallOptions = {},
): Promise<T> => {
  const baseUrl = addressOf(config);
  const sessionManager = new Sessions(baseUrl, {}, await tlsOptions(config, anybody));
  try {
    const defaultTimeoutMs = config.callTimeoutMs + ANSWER_MS;
    return await call(createGrpcTransport({ baseUrl, sessionManager, interceptors, defaultTimeoutMs }));
  } catch (error) {
    if (isLate(error))
      throw new Error(`the server at ${baseUrl} did not answer in time: ${error.message}`, { cause: error });
    if (causeOf(error) === "ERR_HTTP2_ERROR") throw new Error(`no gRPC is spoken at ${baseUrl}`, { cause: error });
    if (causeOf(error) !== "ECONNREFUSED") throw error;
    throw new Error(`nobody listens at ${baseUrl}: is the server running, with this configuration?`, { cause: error });
  } finally {
    // An open connection would keep this process for seconds.
    sessionManager.abort();
  }
};
