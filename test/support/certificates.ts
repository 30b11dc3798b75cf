import { type SelfsignedOptions, generate } from "selfsigned";

export type Identity = { cert: string; key: string };

const algorithm = { keyType: "ec", algorithm: "sha256" } as const;

export async function makeAuthority(name: string, keyType: "ec" | "rsa" = "ec"): Promise<Identity> {
  const { cert, private: key } = await generate([{ name: "commonName", value: name }], {
    ...algorithm,
    keyType,
    extensions: [
      { name: "basicConstraints", cA: true, critical: true },
      { name: "keyUsage", keyCertSign: true, critical: true },
    ],
  });
  return { cert, key };
}

/** Fit for a server on localhost as for a client. */
export async function makeIdentity(
  name: string,
  ca: Identity,
  dates: Pick<SelfsignedOptions, "notBeforeDate" | "notAfterDate"> = {},
): Promise<Identity> {
  const { cert, private: key } = await generate([{ name: "commonName", value: name }], {
    ...algorithm,
    ...dates,
    ca,
    extensions: [
      { name: "basicConstraints", cA: false },
      { name: "subjectAltName", altNames: [{ type: 2, value: "localhost" }] },
    ],
  });
  return { cert, key };
}
