import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, onTestFinished, test, vi } from "vitest";
import { watchCertificates } from "../../src/rpc/tls.ts";
import { type Identity, makeAuthority, makeIdentity } from "../support/certificates.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const HOUR_MS = 3_600_000;

test("a certificate whose time is over, or yet to come, is told of once, also where it ends while it serves", async () => {
  const start = Date.now();
  const authority = await makeAuthority("authority");
  const dated = (name: string, from: number, to: number) =>
    makeIdentity(name, authority, {
      notBeforeDate: new Date(start + from * HOUR_MS),
      notAfterDate: new Date(start + to * HOUR_MS),
    });
  const [over, early, brief] = await Promise.all([dated("over", -2, -1), dated("early", 1, 2), dated("brief", -1, 1)]);
  const folder = await temporaryFolder();
  const [certFile, keyFile, clientCaFile] = ["tls.crt", "tls.key", "ca.crt"].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  const write = async ({ cert, key }: Identity, ca: Identity) => {
    await writeFile(certFile, cert);
    await writeFile(keyFile, key);
    await writeFile(clientCaFile, ca.cert);
  };
  const warnings: [message: string, fields: object][] = [];
  const log = {
    info: () => undefined,
    warn: (fields: object, message: string) => void warnings.push([message, fields]),
  };

  await write(over, early);
  const certificates = await watchCertificates({ certFile, keyFile, clientCaFile }, { pollMs: HOUR_MS, log });
  onTestFinished(() => certificates.close());
  await certificates.reload();
  expect(warnings.splice(0)).toMatchObject([
    ["a certificate has expired", { variable: "TLS_CERT_FILE", subject: "CN=over" }],
    ["a certificate is not valid yet", { variable: "TLS_CLIENT_CA_FILE", subject: "CN=early" }],
  ]);
  await write(brief, authority);
  await certificates.reload();
  expect(warnings).toEqual([]);
  vi.useFakeTimers({ toFake: ["Date"], now: start + 2 * HOUR_MS });
  onTestFinished(() => void vi.useRealTimers());
  await certificates.reload();
  await certificates.reload();
  expect(warnings).toMatchObject([["a certificate has expired", { variable: "TLS_CERT_FILE", subject: "CN=brief" }]]);
});
