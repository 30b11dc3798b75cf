import { pbkdf2Sync, scryptSync } from "node:crypto";
import { hashSync as argon2Sync } from "@node-rs/argon2";
import { hashSync as bcryptSync } from "bcryptjs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { dummyHash, isOutdated, isSupportedHash, verifyHash } from "../../src/auth/password-hashes.ts";
import { parseConfig } from "../../src/config.ts";
import { argon2Kind } from "../support/passwords.ts";

const PASSWORD = "correct horse bättery";
const SALT = Buffer.from("0123456789abcdef");
const OURS = { memoryKib: 64, passes: 1, parallelism: 1 };
const COST = { memoryCost: 64, timeCost: 1, parallelism: 1 };

const b64 = (bytes: Buffer) => bytes.toString("base64").replace(/=+$/, "");
const ab64 = (bytes: Buffer) => b64(bytes).replaceAll("+", ".");
const scrypt = (ln: number, r = 8, p = 1, hash = scryptSync(PASSWORD, SALT, 32, { N: 2 ** ln, r, p })) =>
  `$scrypt$ln=${ln},r=${r},p=${p}$${b64(SALT)}$${b64(hash)}`;
const pbkdf2 = (digest: string, bytes: number) => pbkdf2Sync(PASSWORD, SALT, 1_000, bytes, digest);

/** As the systems write them that people come from. */
const FOREIGN: Readonly<Record<string, string>> = {
  "argon2id of other parameters": argon2Sync(PASSWORD, { ...COST, memoryCost: 128, timeCost: 2, parallelism: 4 }),
  argon2i: argon2Sync(PASSWORD, { ...COST, ...argon2Kind("argon2i", 19) }),
  "argon2id of version 16": argon2Sync(PASSWORD, { ...COST, ...argon2Kind("argon2id", 16) }),
  "argon2i that names no version": argon2Sync(PASSWORD, {
    ...COST,
    ...argon2Kind("argon2i", 16),
  }).replace("v=16$", ""),
  "bcrypt 2b": bcryptSync(PASSWORD, 4),
  "bcrypt 2a": bcryptSync(PASSWORD, 4).replace("$2b$", "$2a$"),
  "bcrypt 2y": bcryptSync(PASSWORD, 4).replace("$2b$", "$2y$"),
  "scrypt of PHC": scrypt(4),
  "pbkdf2-sha256 of passlib": `$pbkdf2-sha256$1000$${ab64(SALT)}$${ab64(pbkdf2("sha256", 32))}`,
  "pbkdf2-sha512 of passlib": `$pbkdf2-sha512$1000$${ab64(SALT)}$${ab64(pbkdf2("sha512", 64))}`,
  "pbkdf2-sha256 of PHC": `$pbkdf2-sha256$i=1000,l=32$${b64(SALT)}$${b64(pbkdf2("sha256", 32))}`,
  "pbkdf2-sha512 of PHC": `$pbkdf2-sha512$i=1000$${b64(SALT)}$${b64(pbkdf2("sha512", 64))}`,
};

describe.each(Object.entries(FOREIGN))("%s", (_, hash) => {
  test("matches its password and no other, and gives way to ours", () => {
    expect(isSupportedHash(hash)).toBe(true);
    expect(verifyHash(PASSWORD, hash)).toBe(true);
    expect(verifyHash(`${PASSWORD}!`, hash)).toBe(false);
    expect(verifyHash("", hash)).toBe(false);
    expect(isOutdated(hash, OURS)).toBe(true);
  });

  test("matches nothing once a letter of it is another, or many are missing", () => {
    const letter = hash.at(-10) === "A" ? "B" : "A";
    expect(verifyHash(PASSWORD, `${hash.slice(0, -10)}${letter}${hash.slice(-9)}`)).toBe(false);
    const hashAt = hash.lastIndexOf("$") + 1;
    for (const letters of [0, 1, 4, 20]) expect(verifyHash(PASSWORD, hash.slice(0, hashAt + letters))).toBe(false);
  });
});

// From crypt_blowfish, libxcrypt and passlib's own documentation.
test.each([
  ["U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"],
  ["pleaseletmein", "$7$C6..../....SodiumChloride$kBGj9fHznVYFQMEn/qDCfrDevf9YDtcDdKvEqHJLV8D"],
  ["password", "$pbkdf2-sha256$8000$XAuBMIYQQogxRg$tRRlz8hYn63B9LYiCd6PRo6FMiunY9ozmMMI3srxeRE"],
])("a published hash of %j matches: %s", (password, hash) => {
  expect(verifyHash(password, hash)).toBe(true);
  expect(verifyHash(`${password}?`, hash)).toBe(false);
});

test("our own hash is not outdated until a parameter changes", () => {
  const hash = argon2Sync(PASSWORD, COST);
  expect(verifyHash(PASSWORD, hash)).toBe(true);
  expect(isOutdated(hash, OURS)).toBe(false);
  expect(isOutdated(hash, { ...OURS, memoryKib: 128 })).toBe(true);
  expect(isOutdated(hash, { ...OURS, passes: 2 })).toBe(true);
  expect(isOutdated(hash, { ...OURS, parallelism: 2 })).toBe(true);
  expect(isOutdated(argon2Sync(PASSWORD, { ...COST, outputLen: 24 }), OURS)).toBe(true);
  expect(isOutdated(argon2Sync(PASSWORD, { ...COST, salt: Buffer.alloc(8) }), OURS)).toBe(true);
});

test("the dummy is a hash of our parameters that no password is known for", () => {
  const dummy = dummyHash(OURS);
  expect(isSupportedHash(dummy)).toBe(true);
  expect(isOutdated(dummy, OURS)).toBe(false);
  expect(verifyHash(PASSWORD, dummy)).toBe(false);
});

test("composed and decomposed forms match alike, and what an older system hashed as it was typed", () => {
  const decomposed = PASSWORD.normalize("NFD");
  expect(decomposed).not.toBe(PASSWORD);
  for (const hash of [argon2Sync(PASSWORD, COST), bcryptSync(PASSWORD, 4)]) {
    expect(verifyHash(decomposed, hash)).toBe(true);
  }
  for (const hash of [argon2Sync(decomposed, COST), bcryptSync(decomposed, 4)]) {
    expect(verifyHash(decomposed, hash)).toBe(true);
    expect(verifyHash(PASSWORD, hash)).toBe(false);
  }
});

test("bcrypt looks at 72 bytes, as it did in the system that the hash is from", () => {
  const hash = bcryptSync("x".repeat(80), 4);
  expect(verifyHash(`${"x".repeat(72)}yyy`, hash)).toBe(true);
  expect(verifyHash(`${"x".repeat(71)}y`, hash)).toBe(false);
});

test("a bcrypt salt with bits that count for nothing still matches", () => {
  const hash = bcryptSync(PASSWORD, "$2b$04$abcdefghijklmnopqrstuu");
  // The salt's last letter has two bits that count: u and v differ in the others.
  expect(verifyHash(PASSWORD, `${hash.slice(0, 28)}v${hash.slice(29)}`)).toBe(true);
});

const SALTED = `$${b64(SALT)}$${b64(Buffer.alloc(32, 1))}`;
const withSaltAndHash = (head: string, salt: number, hash: number) =>
  `${head}$${b64(Buffer.alloc(salt, 1))}$${b64(Buffer.alloc(hash, 1))}`;

test.each([
  "$argon2id$v=19$m=262145,t=1,p=1",
  "$argon2id$v=19$m=262144,t=5,p=1",
  "$argon2id$v=19$m=19456,t=999999999,p=1",
  "$argon2id$v=19$m=64,t=0,p=1",
  "$argon2id$v=19$m=7,t=1,p=1",
  "$argon2id$v=19$m=64,t=1,p=0",
  "$argon2id$v=19$m=1024,t=1,p=17",
  "$argon2id$v=18$m=64,t=1,p=1",
  "$argon2d$v=19$m=64,t=1,p=1",
  "$scrypt$ln=19,r=8,p=1",
  "$scrypt$ln=14,r=8,p=65",
  // Hardly any mixing, and half a GiB by PBKDF2.
  "$scrypt$ln=1,r=41,p=99999",
  "$scrypt$ln=1,r=8,p=32769",
  "$scrypt$ln=99,r=8,p=1",
  "$scrypt$ln=16,r=1,p=1",
  "$scrypt$ln=0,r=8,p=1",
  "$scrypt$ln=4,r=0,p=1",
  "$scrypt$ln=4,r=8,p=0",
  "$pbkdf2-sha256$2000001",
  "$pbkdf2-sha256$0",
  "$pbkdf2-sha256$i=1000,l=31",
  "$pbkdf2-sha1$1000",
  "$pbkdf2$1000",
])("a hash of %s is out of bounds, or of no kind that is supported", (head) => {
  expect(isSupportedHash(`${head}${SALTED}`)).toBe(false);
  expect(verifyHash(PASSWORD, `${head}${SALTED}`)).toBe(false);
});

test.each(["$argon2id$v=19$m=64,t=1,p=1", "$scrypt$ln=4,r=8,p=1", "$pbkdf2-sha256$1000"])(
  "%s needs a salt and a hash that are long enough",
  (head) => {
    expect(isSupportedHash(withSaltAndHash(head, 8, 16))).toBe(true);
    expect(isSupportedHash(withSaltAndHash(head, 7, 16))).toBe(false);
    expect(isSupportedHash(withSaltAndHash(head, 8, 15))).toBe(false);
    expect(isSupportedHash(withSaltAndHash(head, 129, 16))).toBe(false);
    expect(isSupportedHash(withSaltAndHash(head, 8, 65))).toBe(false);
    expect(isSupportedHash(withSaltAndHash(head, 0, 0))).toBe(false);
  },
);

test.each([
  [8, 43, true],
  [86, 43, true],
  [7, 43, false],
  [87, 43, false],
  [8, 42, false],
  [8, 44, false],
])("a scrypt of crypt(5) with a salt of %i letters and a hash of %i is supported: %s", (salt, hash, supported) => {
  expect(isSupportedHash(`$7$C6..../....${"s".repeat(salt)}$${"A".repeat(hash)}`)).toBe(supported);
});

test.each([
  ["03", false],
  ["04", true],
  ["14", true],
  ["15", false],
  ["31", false],
])("bcrypt of cost %s is within bounds: %s", (cost, supported) => {
  expect(isSupportedHash(bcryptSync(PASSWORD, 4).replace("$04$", `$${cost}$`))).toBe(supported);
});

test.each(["", "password", "{SSHA}abc", "$1$salt$hash", "$2x$04$x", "5f4dcc3b5aa765d61d8327deb882cf99", "$$$$"])(
  "%j is no hash and matches nothing",
  (text) => {
    expect(isSupportedHash(text)).toBe(false);
    expect(verifyHash(text, text)).toBe(false);
  },
);

test("whatever the text, nothing throws, and what is not supported never matches", () => {
  const heads = Object.values(FOREIGN).map((hash) => hash.slice(0, hash.indexOf("$", 4)));
  const texts = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.tuple(fc.constantFrom(...heads), fc.string({ unit: "grapheme-ascii" })).map(([head, tail]) => head + tail),
    fc
      .tuple(fc.constantFrom(...Object.values(FOREIGN)), fc.nat(120), fc.constantFrom("", "$", ",", "A", "=", "."))
      .map(([hash, at, letter]) => hash.slice(0, at) + letter + hash.slice(at + 1)),
  );
  const property = fc.property(texts, (text) => {
    if (!isSupportedHash(text)) expect(verifyHash(PASSWORD, text)).toBe(false);
  });
  fc.assert(property, { numRuns: 500 });
});

// Every parameter that parses must also be one that the algorithm takes.
test("whatever parameters a configuration may have, what they hash can be verified", () => {
  const corners = ["8,1,1", "128,1,16", "262144,4,1", "262144,4,16", "10485,100,3"];
  for (const corner of corners) {
    const [memory = "", passes = "", parallelism = ""] = corner.split(",");
    const { passwords } = parseConfig({
      PASSWORD_HASH_MEMORY_KIB: memory,
      PASSWORD_HASH_PASSES: passes,
      PASSWORD_HASH_PARALLELISM: parallelism,
    });
    expect(isSupportedHash(dummyHash(passwords)), corner).toBe(true);
  }
});

test("what is supported can be verified", () => {
  const numbers = fc.record({ ln: fc.integer({ min: 1, max: 8 }), r: fc.integer({ min: 1, max: 8 }), p: fc.nat(4) });
  const property = fc.property(numbers, ({ ln, r, p }) => {
    for (const head of [`$scrypt$ln=${ln},r=${r},p=${p}`, `$argon2id$v=19$m=${ln * 8},t=${r},p=${p}`]) {
      expect(verifyHash(PASSWORD, `${head}${SALTED}`)).toBe(false);
    }
  });
  fc.assert(property, { numRuns: 50 });
});

test.each(["$scrypt$ln=18,r=8,p=1", "$scrypt$ln=1,r=8,p=32768"])(
  "at the bound of what it may cost, %s can be verified",
  (head) => {
    expect(isSupportedHash(`${head}${SALTED}`)).toBe(true);
    expect(verifyHash(PASSWORD, `${head}${SALTED}`)).toBe(false);
  },
);
