import { createPrivateKey, X509Certificate, type KeyObject } from "node:crypto";
import { createSecureContext, type SecureContextOptions } from "node:tls";
import { ConfigError } from "../config.ts";
import { readConfigured } from "../without-waiting.ts";

export interface CertificateFiles {
  readonly certFile: string;
  readonly keyFile: string;
  readonly clientCaFile?: string | undefined;
}

/** What the files held at one moment: not yet known to fit together. */
export interface CertificateBytes {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly ca?: Buffer;
}

/** A certificate, and the variable that names its file. */
export interface NamedCertificate {
  readonly variable: string;
  readonly certificate: X509Certificate;
}

/** What serves at once, and for the log the certificate itself, and all that the files hold. */
interface CheckedCertificates {
  readonly context: SecureContextOptions;
  readonly leaf: X509Certificate;
  readonly all: readonly NamedCertificate[];
}

// A message names the variable alone: of the file it says nothing, and a key may stand where its file should be named.
const VARIABLES = {
  certFile: "TLS_CERT_FILE",
  keyFile: "TLS_KEY_FILE",
  clientCaFile: "TLS_CLIENT_CA_FILE",
  databaseCaFile: "DATABASE_TLS_CA_FILE",
} as const;
type FileName = keyof typeof VARIABLES;

const fault = (file: FileName, what: string) => new ConfigError([`${VARIABLES[file]} ${what}`]);

const read = async (file: FileName, path: string): Promise<Buffer | ConfigError> => {
  try {
    return await readConfigured(path);
  } catch (error) {
    return fault(file, `cannot be read: ${(error as NodeJS.ErrnoException).code ?? "unknown error"}`);
  }
};

/** @throws ConfigError that names the variable of a file that cannot be read. */
export const readCertificateFile = async (file: FileName, path: string): Promise<Buffer> => {
  const found = await read(file, path);
  if (found instanceof ConfigError) throw found;
  return found;
};

/** @throws ConfigError that names all that cannot be read. */
export const readCertificates = async (files: CertificateFiles): Promise<CertificateBytes> => {
  const [cert, key, ca] = await Promise.all([
    read("certFile", files.certFile),
    read("keyFile", files.keyFile),
    files.clientCaFile === undefined ? undefined : read("clientCaFile", files.clientCaFile),
  ]);
  if (cert instanceof ConfigError || key instanceof ConfigError || ca instanceof ConfigError) {
    throw new ConfigError([cert, key, ca].flatMap((found) => (found instanceof ConfigError ? found.faults : [])));
  }
  return ca === undefined ? { cert, key } : { cert, key, ca };
};

export const sameBytes = (a: CertificateBytes, b: CertificateBytes) =>
  a.cert.equals(b.cert) && a.key.equals(b.key) && (a.ca && b.ca ? a.ca.equals(b.ca) : a.ca === b.ca);

/**
 * Files that change one by one, or together behind a swapped symlink, can be met in between: the former certificate with
 * the renewed key. So what is not `known` counts once two readings agree, or after the third, which the check judges.
 */
export const readSettled = async (files: CertificateFiles, known: CertificateBytes): Promise<CertificateBytes> => {
  let found = await readCertificates(files);
  for (let again = 0; again < 2 && !sameBytes(found, known); again++) {
    const former = found;
    found = await readCertificates(files);
    if (sameBytes(found, former)) break;
  }
  return found;
};

// OpenSSL ends a CA list without a word at a block that was cut off, and takes a file without any block as a list that
// trusts nobody: so each block is counted and parsed here.
const parseBlocks = (pem: Buffer): X509Certificate[] => {
  const text = pem.toString("latin1");
  const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  const begun = text.split("-----BEGIN CERTIFICATE-----").length - 1;
  if (blocks.length === 0 || blocks.length !== begun) throw new Error("no complete PEM certificate");
  return blocks.map((block) => new X509Certificate(block));
};

/** @throws ConfigError that names the variable, where a certificate is broken or none is there. */
export const parseCertificates = (file: FileName, pem: Buffer): X509Certificate[] => {
  try {
    return parseBlocks(pem);
  } catch {
    throw fault(file, "holds no complete PEM certificate");
  }
};

// What RFC 9325, 4.2 recommends for TLS 1.2, and all of TLS 1.3. Node's own list goes on to suites whose recorded traffic
// opens to whoever gets the key one day, and with which HTTP/2 may refuse a connection (RFC 9113, appendix A).
const CIPHERS = [
  "TLS_AES_256_GCM_SHA384",
  "TLS_CHACHA20_POLY1305_SHA256",
  "TLS_AES_128_GCM_SHA256",
  "ECDHE-ECDSA-AES128-GCM-SHA256",
  "ECDHE-RSA-AES128-GCM-SHA256",
  "ECDHE-ECDSA-AES256-GCM-SHA384",
  "ECDHE-RSA-AES256-GCM-SHA384",
  "ECDHE-ECDSA-CHACHA20-POLY1305",
  "ECDHE-RSA-CHACHA20-POLY1305",
].join(":");

/**
 * Looks whether the pair could serve at once: the former stays in use until a new one passes here.
 * @throws ConfigError that names the variable at fault.
 */
export const checkCertificates = ({ cert, key, ca }: CertificateBytes): CheckedCertificates => {
  const chain = parseCertificates("certFile", cert);
  const authorities = ca ? parseCertificates("clientCaFile", ca) : [];
  const [leaf] = chain;

  let privateKey: KeyObject;
  try {
    privateKey = createPrivateKey(key);
  } catch {
    throw fault("keyFile", "holds no unencrypted PEM private key");
  }
  if (!leaf?.checkPrivateKey(privateKey)) {
    throw fault("keyFile", "does not belong to the certificate in TLS_CERT_FILE");
  }

  // Said again at each renewal: Node forgets what a server's context is set without.
  const context: SecureContextOptions = { cert, key, minVersion: "TLSv1.2", ciphers: CIPHERS, ...(ca && { ca }) };
  try {
    createSecureContext(context);
  } catch {
    throw fault("certFile", "is refused by OpenSSL");
  }
  const named = (file: FileName) => (certificate: X509Certificate) => ({ variable: VARIABLES[file], certificate });
  return { context, leaf, all: [...chain.map(named("certFile")), ...authorities.map(named("clientCaFile"))] };
};
