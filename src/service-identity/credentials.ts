import { randomInt } from "node:crypto";
import { crc32 } from "node:zlib";

/** What a credential is: a service's long-lived secret, or the token of one of its sessions. */
type CredentialKind = "sks" | "skt";

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
// 62^43 > 2^256: as hard to guess as a 256-bit key.
const RANDOM_CHARACTERS = 43;
const FORMAT = /^(sks|skt)_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_[0-9A-Za-z]{43}_([0-9a-f]{8})$/;

const checksum = (text: string) => crc32(text).toString(16).padStart(8, "0");

/**
 * A new credential, `<kind>_<id>_<random>_<crc32>`: the id finds its row, the prefix and checksum let secret scanners
 * find a leaked one without asking us.
 */
export const makeCredential = (kind: CredentialKind, id: string): string => {
  const random = Array.from({ length: RANDOM_CHARACTERS }, () => ALPHABET[randomInt(ALPHABET.length)]).join("");
  const body = `${kind}_${id}_${random}`;
  return `${body}_${checksum(body)}`;
};

/** The id that a credential names, or undefined where its form or checksum is wrong: no query is spent on those. */
export const credentialId = (kind: CredentialKind, credential: string): string | undefined => {
  const [, foundKind, id, crc] = FORMAT.exec(credential) ?? [];
  if (foundKind !== kind || crc !== checksum(credential.slice(0, -9))) return undefined;
  return id;
};
