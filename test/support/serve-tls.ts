import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Log } from "../../src/log.ts";
import { makeAuthority, makeIdentity } from "./certificates.ts";
import { onFileFinished } from "./per-file.ts";
import { serve } from "./serve.ts";

/** A server over TLS, and the authority that its clients trust. */
export const serveTls = async (databaseUrl: string, env: Readonly<Record<string, string>> = {}, log?: Log) => {
  const folder = await mkdtemp(join(tmpdir(), "auth-service-tls-"));
  onFileFinished(() => rm(folder, { recursive: true }));
  const authority = await makeAuthority("authority");
  const files = { TLS_CERT_FILE: join(folder, "cert.pem"), TLS_KEY_FILE: join(folder, "key.pem") };
  const certify = async (name: string) => {
    const { cert, key } = await makeIdentity(name, authority);
    await writeFile(files.TLS_CERT_FILE, cert);
    await writeFile(files.TLS_KEY_FILE, key);
  };
  await certify("server");
  return { server: await serve(databaseUrl, { ...files, ...env }, log), files, ca: authority.cert, certify };
};
