import { type X509Certificate, hash } from "node:crypto";
import type { SecureServerOptions } from "node:http2";
import type { SecureContextOptions } from "node:tls";
import { ServerCredentials } from "@grpc/grpc-js";
import { ConfigError } from "../config.ts";
import { startPolling } from "../polling.ts";
import {
  checkCertificates,
  readCertificates,
  readSettled,
  sameBytes,
  type CertificateBytes,
  type CertificateFiles,
  type NamedCertificate,
} from "./certificate-files.ts";

/** Of a Log what is used here. */
interface CertificateLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
}

export interface Certificates {
  /** For `Server.bindAsync`; follows every renewal by itself. */
  grpcCredentials(): ServerCredentials;
  /** For `http2.createSecureServer`; renewed by `onChange((context) => server.setSecureContext(context))`. */
  secureServerOptions(): SecureServerOptions;
  onChange(listener: (context: SecureContextOptions) => void): void;
  /** Reads the files now; never throws, for a bad pair keeps the former. */
  reload(): Promise<void>;
  close(): void;
}

/** How long a connection may say nothing, where Node would wait for two minutes. */
const HANDSHAKE_MS = 10_000;

// grpc-js's own provider comes with no minimum version, has no certificate until its listeners ran, and applies a CA and
// a pair one after the other: a subclass sets one whole context, and is checked against each upgrade by the compiler.
class RenewableCredentials extends ServerCredentials {
  renew(context: SecureContextOptions): void {
    this.updateSecureContextOptions(context);
  }

  override _equals(other: ServerCredentials): boolean {
    return this === other;
  }
}

/** Says of each certificate once that its time is over, or yet to come: peers who look turn away, and tell nobody here. */
const createDateWarnings = (log: CertificateLog) => {
  const told = new WeakSet<X509Certificate>();
  return (all: readonly NamedCertificate[]) => {
    const now = new Date();
    for (const { variable, certificate } of all) {
      const { subject, validFrom, validTo, validFromDate, validToDate } = certificate;
      const fault = now > validToDate ? "has expired" : now < validFromDate && "is not valid yet";
      if (!fault || told.has(certificate)) continue;
      told.add(certificate);
      log.warn({ variable, subject, validFrom, validTo }, `a certificate ${fault}`);
    }
  };
};

/**
 * Reads the certificates, and again every `pollMs`.
 * @throws ConfigError if they cannot serve at the start.
 */
export const watchCertificates = async (
  files: CertificateFiles,
  { pollMs, log }: { readonly pollMs: number; readonly log: CertificateLog },
): Promise<Certificates> => {
  let bytes = await readCertificates(files);
  let { context, all } = checkCertificates(bytes);
  const warnOfDates = createDateWarnings(log);
  warnOfDates(all);
  const listeners = new Set<(context: SecureContextOptions) => void>();
  const handshake = {
    handshakeTimeout: HANDSHAKE_MS,
    ...(files.clientCaFile !== undefined && { requestCert: true, rejectUnauthorized: true }),
  };
  let told: string | undefined;

  const poll = async () => {
    let found: CertificateBytes | undefined;
    try {
      found = await readSettled(files, bytes);
      if (!sameBytes(found, bytes)) {
        const renewed = checkCertificates(found);
        for (const listener of listeners) listener(renewed.context);
        ({ context, all } = renewed);
        bytes = found;
        const { subject, validTo, fingerprint256 } = renewed.leaf;
        log.info({ subject, validTo, fingerprint256 }, "certificates renewed");
      }
      told = undefined;
    } catch (error) {
      const reason = error instanceof ConfigError ? error.faults.join("; ") : String(error);
      // Once for each distinct content: a pair that stays broken for a week is one line, not one every poll.
      const content = found ? hash("sha256", JSON.stringify(found)) : reason;
      if (told !== content) log.warn({ reason }, "certificates not renewed: the former stay in use");
      told = content;
    }
    warnOfDates(all);
  };

  const polling = startPolling(poll, pollMs);

  return {
    grpcCredentials() {
      const credentials = new RenewableCredentials(handshake, context);
      listeners.add((renewed) => credentials.renew(renewed));
      return credentials;
    },
    secureServerOptions: () => ({ ...context, ...handshake, allowHTTP1: true }),
    onChange: (listener) => void listeners.add(listener),
    reload: polling.now,
    close: polling.stop,
  };
};
