import { pbkdf2Sync, scryptSync, timingSafeEqual } from "node:crypto";
import { hashRawSync, parseOptions } from "@node-rs/argon2";
import { decodeBase64, hashSync as bcryptSync } from "bcryptjs";
import { HASH_COST_MAX } from "../config-values.ts";
import { normalPassword } from "./normal-passwords.ts";

/** What an argon2id hash costs (RFC 9106, 3.1). */
export interface HashParameters {
  readonly memoryKib: number;
  readonly passes: number;
  readonly parallelism: number;
}

interface ParsedHash {
  readonly expected: Buffer;
  derive(password: string): Buffer;
}

/** One way to write a hash. `read` answers undefined where the cost or a length is out of bounds. */
interface Format {
  readonly pattern: RegExp;
  read(parts: Readonly<Record<string, string>>): ParsedHash | undefined;
}

// As `HASH_COST_MAX`, about a second of one core.
const BCRYPT_COST_MIN = 4;
const BCRYPT_COST_MAX = 14;
const PBKDF2_ITERATIONS_MAX = 2_000_000;
const SALT_BYTES = { min: 8, max: 128 };
// A hash that is cut short, or empty, would match too many passwords.
const HASH_BYTES = { min: 16, max: 64 };

const isWithin = (value: number, { min, max }: { readonly min: number; readonly max: number }) =>
  value >= min && value <= max;

/** Base64 without padding; passlib writes `.` for `+`. */
const bytesOf = (text = "") => Buffer.from(text.replaceAll(".", "+"), "base64");

const saltAndHash = ({ salt, hash }: Readonly<Record<string, string>>) => {
  const read = { salt: bytesOf(salt), expected: bytesOf(hash) };
  return isWithin(read.salt.length, SALT_BYTES) && isWithin(read.expected.length, HASH_BYTES) ? read : undefined;
};

/** As the library numbers them, read by its own parser: its `const enum`s are of no use without a compiler. */
const numbersOf = (kind: string, version: string) =>
  parseOptions(`$${kind}$v=${version}$m=8,t=1,p=1$${"A".repeat(22)}$${"A".repeat(43)}`);

const argon2: Format = {
  // Version 16 is what strings without one have.
  pattern:
    /^\$(?<kind>argon2id?)\$(?:v=(?<v>16|19)\$)?m=(?<m>\d{1,9}),t=(?<t>\d{1,9}),p=(?<p>\d{1,3})\$(?<salt>[A-Za-z0-9+/]+)\$(?<hash>[A-Za-z0-9+/]+)$/,
  read(parts) {
    const [memoryCost, timeCost, parallelism] = [Number(parts["m"]), Number(parts["t"]), Number(parts["p"])];
    const read = saltAndHash(parts);
    const bounded =
      isWithin(parallelism, { min: 1, max: HASH_COST_MAX.parallelism }) &&
      isWithin(memoryCost, { min: 8 * parallelism, max: HASH_COST_MAX.memoryKib }) &&
      isWithin(memoryCost * timeCost, { min: 1, max: HASH_COST_MAX.memoryPassesKib });
    if (!read || !bounded) return undefined;
    const { salt, expected } = read;
    const { algorithm, version } = numbersOf(parts["kind"] ?? "", parts["v"] ?? "16");
    const options = { algorithm, version, memoryCost, timeCost, parallelism, salt, outputLen: expected.length };
    return { expected, derive: (password) => hashRawSync(password, options) };
  },
};

const BCRYPT_HASH_BYTES = 23;

const bcrypt: Format = {
  pattern: /^\$2[aby]\$(?<cost>\d\d)\$(?<salt>[./A-Za-z0-9]{22})(?<hash>[./A-Za-z0-9]{31})$/,
  read({ cost = "", salt = "", hash = "" }) {
    if (!isWithin(Number(cost), { min: BCRYPT_COST_MIN, max: BCRYPT_COST_MAX })) return undefined;
    const hashBytes = (text: string) => Buffer.from(decodeBase64(text, BCRYPT_HASH_BYTES));
    // By the hash alone: some systems left bits of a salt's last letter set, which are written anew as zero. The
    // revisions differ in bugs that bcryptjs does not have. What is beyond 72 bytes never counts.
    const derive = (password: string) => hashBytes(bcryptSync(password, `$2b$${cost}$${salt}`).slice(-hash.length));
    return { expected: hashBytes(hash), derive };
  },
};

/** What making and hashing a KiB by PBKDF2 costs, where mixing one once is 1. */
const PBKDF2_PASSES = 32;

const scryptOf = (N: number, r: number, p: number, salt: Buffer, expected: Buffer): ParsedHash | undefined => {
  const [memoryKib, blocksKib] = [(N * r) / 8, (r * p) / 8];
  // N < 2^(128 r / 8): RFC 7914, 2. So r is no 0.
  const isScrypt = N >= 2 && p >= 1 && N < 2 ** (16 * r);
  const isBounded =
    memoryKib <= HASH_COST_MAX.memoryKib && Math.max(N, PBKDF2_PASSES) * blocksKib <= HASH_COST_MAX.memoryPassesKib;
  if (!isScrypt || !isBounded) return undefined;
  const options = { N, r, p, maxmem: 2 * HASH_COST_MAX.memoryKib * 1_024 };
  return { expected, derive: (password) => scryptSync(password, salt, expected.length, options) };
};

const scrypt: Format = {
  pattern:
    /^\$scrypt\$ln=(?<ln>\d{1,2}),r=(?<r>\d{1,5}),p=(?<p>\d{1,5})\$(?<salt>[A-Za-z0-9+/.]+)\$(?<hash>[A-Za-z0-9+/.]+)$/,
  read(parts) {
    const read = saltAndHash(parts);
    return read && scryptOf(2 ** Number(parts["ln"]), Number(parts["r"]), Number(parts["p"]), read.salt, read.expected);
  },
};

const CRYPT_LETTERS = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/** Six bits a letter, the lowest first, as crypt(5) writes numbers. */
const cryptNumber = (text: string) =>
  Array.from(text).reduce((sum, letter, index) => sum + CRYPT_LETTERS.indexOf(letter) * 64 ** index, 0);

/** Three bytes in four letters, the lowest first. */
const cryptBytes = (text: string) =>
  Buffer.concat(
    (text.match(/.{1,4}/g) ?? []).map((letters) => {
      const bytes = Buffer.alloc(4);
      bytes.writeUInt32LE(cryptNumber(letters));
      return bytes.subarray(0, letters.length - 1);
    }),
  );

/** The scrypt of crypt(5) and libsodium. Its salt is the text as it stands. */
const cryptScrypt: Format = {
  pattern:
    /^\$7\$(?<ln>[./A-Za-z0-9])(?<r>[./A-Za-z0-9]{5})(?<p>[./A-Za-z0-9]{5})(?<salt>[./A-Za-z0-9]{8,86})\$(?<hash>[./A-Za-z0-9]{43})$/,
  read({ ln = "", r = "", p = "", salt = "", hash = "" }) {
    return scryptOf(2 ** cryptNumber(ln), cryptNumber(r), cryptNumber(p), Buffer.from(salt), cryptBytes(hash));
  },
};

const pbkdf2: Format = {
  // PHC names its parameters, passlib has the iterations alone.
  pattern:
    /^\$pbkdf2-(?<digest>sha256|sha512)\$(?:i=)?(?<i>\d{1,9})(?:,l=(?<l>\d{1,3}))?\$(?<salt>[A-Za-z0-9+/.]+)\$(?<hash>[A-Za-z0-9+/.]+)$/,
  read(parts) {
    const read = saltAndHash(parts);
    const iterations = Number(parts["i"]);
    if (!read || !isWithin(iterations, { min: 1, max: PBKDF2_ITERATIONS_MAX })) return undefined;
    const { salt, expected } = read;
    if (parts["l"] !== undefined && Number(parts["l"]) !== expected.length) return undefined;
    const digest = parts["digest"] ?? "";
    return { expected, derive: (password) => pbkdf2Sync(password, salt, iterations, expected.length, digest) };
  },
};

const FORMATS: readonly Format[] = [argon2, bcrypt, scrypt, cryptScrypt, pbkdf2];

const parse = (text: string): ParsedHash | undefined => {
  for (const { pattern, read } of FORMATS) {
    const parts = pattern.exec(text)?.groups;
    if (parts) return read(parts);
  }
  return undefined;
};

/**
 * Whether `text` is a hash that can be verified, at a bounded cost: argon2id or argon2i, bcrypt, scrypt, pbkdf2-sha256 or
 * pbkdf2-sha512, as PHC or modular-crypt string.
 */
export const isSupportedHash = (text: string): boolean => parse(text) !== undefined;

/**
 * Compares in constant time, on the thread that asks. What is no supported hash matches nothing.
 *
 * A system that users came from may have hashed the bytes as they were typed, so these are tried after the normal form.
 */
export const verifyHash = (password: string, hash: string): boolean => {
  const parsed = parse(hash);
  if (!parsed) return false;
  const forms = new Set([normalPassword(password), password]);
  return [...forms].some((form) => timingSafeEqual(parsed.derive(form), parsed.expected));
};

const prefixOf = ({ memoryKib, passes, parallelism }: HashParameters) =>
  `$argon2id$v=19$m=${memoryKib},t=${passes},p=${parallelism}$`;
const OUR_SALT_AND_HASH = /^[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/;

/** Whether `hash` is another than we would write. */
export const isOutdated = (hash: string, ours: HashParameters): boolean => {
  const prefix = prefixOf(ours);
  return !hash.startsWith(prefix) || !OUR_SALT_AND_HASH.test(hash.slice(prefix.length));
};

/** A hash as we write them, of no password. */
export const dummyHash = (ours: HashParameters): string => `${prefixOf(ours)}${"A".repeat(22)}$${"A".repeat(43)}`;
