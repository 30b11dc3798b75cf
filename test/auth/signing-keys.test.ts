import { execFile } from "node:child_process";
import { mkdtemp, open, readFile, readdir, readlink, rm, stat, symlink, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { decodeProtectedHeader } from "jose";
import { afterAll, expect, test } from "vitest";
import { type SigningKeys, watchSigningKeys } from "../../src/auth/signing-keys.ts";
import { parseConfig } from "../../src/config.ts";
import { jwtKeysFileOf, makeJwk } from "../../src/dev-keys.ts";
import { TokenReason } from "../../src/gen/auth/v1/auth_pb.ts";
import { createLog } from "../../src/log.ts";
import { type KeysFile, type TestJwk, createKeysFile, publicOnly } from "../support/keys-file.ts";
import { launchService } from "../support/service.ts";
import { signInBy } from "../support/sign-in.ts";
import { timersOf } from "../support/timers.ts";

const NEVER_MS = 1_000_000;
const watched: SigningKeys[] = [];
afterAll(() => watched.forEach((keys) => keys.close()));

/** Keys whose log is gathered. */
const watch = async ({ file }: Pick<KeysFile, "file">, pollMs = NEVER_MS) => {
  const lines: { readonly fields: object; readonly message: string }[] = [];
  const gather = (fields: object, message: string) => void lines.push({ fields, message });
  const log = Object.assign(createLog("silent"), { warn: gather, info: gather });
  const keys = await watchSigningKeys({ file, pollMs, log });
  watched.push(keys);
  return { keys, lines };
};

const kidsOf = (keys: SigningKeys) =>
  (JSON.parse(keys.jwks()) as { keys: { kid: string }[] }).keys.map(({ kid }) => kid);

/** The file is read again whenever an unknown kid comes. */
const reread = (keys: SigningKeys) => keys.verifying("unknown");

test("the first key signs, all verify, and nothing private is published", async () => {
  const [first, second] = [makeJwk(), makeJwk()];
  const { keys } = await watch(await createKeysFile({ ...first, note: "x" }, publicOnly(second)));
  expect(keys.signing().kid).toBe(first.kid);
  expect(await keys.verifying(second.kid)).toBeDefined();
  const published = ({ kty, crv, x, kid }: TestJwk) => ({ kty, crv, x, kid, alg: "EdDSA", use: "sig" });
  expect(JSON.parse(keys.jwks())).toEqual({ keys: [published(first), published(second)] });
});

const bad: Record<string, (good: TestJwk) => string> = {
  "an empty file": () => "",
  "half a file": (good) => JSON.stringify({ keys: [good] }).slice(0, -20),
  "another JSON": () => '"keys"',
  "no key": () => '{"keys":[]}',
  "a first key that cannot sign": (good) => JSON.stringify({ keys: [publicOnly(good), makeJwk()] }),
  "a key of another curve": (good) => JSON.stringify({ keys: [good, { ...makeJwk(), crv: "X25519" }] }),
  "an RSA key": (good) => JSON.stringify({ keys: [good, { kty: "RSA", n: "AQAB", e: "AQAB", kid: "r" }] }),
  "a key without kid": (good) => JSON.stringify({ keys: [{ ...good, kid: undefined }] }),
  "a kid twice": (good) => JSON.stringify({ keys: [good, { ...makeJwk(), kid: good["kid"] }] }),
  "a key for another algorithm": (good) => JSON.stringify({ keys: [{ ...good, alg: "RS256" }] }),
  "a key for encryption": (good) => JSON.stringify({ keys: [{ ...good, use: "enc" }] }),
  "halves of two pairs": (good) => JSON.stringify({ keys: [{ ...good, x: makeJwk().x }] }),
  "a key of another length": (good) => JSON.stringify({ keys: [{ ...good, d: "AAAA" }] }),
};

test.each(Object.keys(bad))(
  "%s keeps the former keys with one warning, and at the start is a ConfigError",
  async (name) => {
    const good = makeJwk();
    const file = await createKeysFile(good);
    const { keys, lines } = await watch(file);
    const text = bad[name]!(good);
    await file.write(text);
    await reread(keys);
    await reread(keys);
    expect(kidsOf(keys)).toEqual([good.kid]);
    expect(lines).toMatchObject([{ message: "signing keys not renewed: the former stay in use" }]);
    const said = JSON.stringify(lines);
    for (const secret of [good.d, good.x]) expect(said).not.toContain(secret);

    const failure = await watch(file).then(
      () => expect.fail("it started"),
      (error: unknown) => error,
    );
    expect(failure).toMatchObject({ name: "ConfigError", faults: [expect.stringMatching(/^JWT_KEYS_FILE /)] });
    expect(String(failure)).not.toContain(good.d);
  },
);

test("a file that is not there is a ConfigError at the start, and keeps the former keys later", async () => {
  const good = makeJwk();
  const file = await createKeysFile(good);
  const { keys, lines } = await watch(file);
  await rm(file.file);
  await reread(keys);
  expect(kidsOf(keys)).toEqual([good.kid]);
  expect(lines).toMatchObject([{ fields: { reason: "cannot be read: ENOENT" } }]);
  await expect(watch(file)).rejects.toThrow(/JWT_KEYS_FILE cannot be read: ENOENT/);
  await file.writeKeys(makeJwk(), good);
  await reread(keys);
  expect(kidsOf(keys)).toHaveLength(2);
  await rm(file.file);
  await reread(keys);
  const lost = "signing keys not renewed: the former stay in use";
  expect(lines.map(({ message }) => message)).toEqual([lost, "signing keys renewed", lost]);
});

/** How often this process has the file open. */
const openings = async (file: string) => {
  const links = (await readdir("/proc/self/fd")).map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => ""));
  return (await Promise.all(links)).filter((link) => link === file).length;
};

test.runIf(process.platform === "linux")("a pipe is read to its end, however late its writer writes", async () => {
  const { file } = await createKeysFile();
  await rm(file);
  await promisify(execFile)("mkfifo", [file]);
  // As bash has it of `<(vault read …)`: who is to write is there, and nothing is written yet.
  const writer = await open(file, "r+");
  const starting = watch({ file });
  const [first, second] = [makeJwk(), makeJwk()];
  const text = JSON.stringify({ keys: [first, second] });
  await Promise.race([starting, expect.poll(() => openings(file)).toBe(2)]);
  await writer.writeFile(text.slice(0, 100));
  await writer.writeFile(text.slice(100));
  await writer.close();
  expect(kidsOf((await starting).keys)).toEqual([first.kid, second.kid]);
});

test("keys that are closed are polled no more", async () => {
  const pollMs = 86_399_999;
  const polls = timersOf(pollMs);
  const { keys } = await watch(await createKeysFile(makeJwk()), pollMs);
  expect(polls()).toHaveLength(1);
  // Closed while a poll is under way, which would set the next one.
  polls()[0]!.fire();
  keys.close();
  await reread(keys);
  expect(polls()).toHaveLength(1);
});

test("a mounted secret, a link that is swapped, is followed by its content", async () => {
  const folder = await mkdtemp(join(tmpdir(), "auth-service-mount-"));
  const [first, second] = [makeJwk(), makeJwk()];
  await writeFile(join(folder, "first"), JSON.stringify({ keys: [first] }));
  await writeFile(join(folder, "second"), JSON.stringify({ keys: [second] }));
  const file = join(folder, "keys.json");
  await symlink("first", file);
  const { keys } = await watch({ file }, 5);
  await unlink(file);
  await symlink("second", file);
  await expect.poll(() => kidsOf(keys)).toEqual([second.kid]);
  await rm(folder, { recursive: true });
});

test("an unknown kid has the file read once for all who ask at once, and is found where it is new", async () => {
  const [former, next] = [makeJwk(), makeJwk()];
  const file = await createKeysFile(former);
  const { keys, lines } = await watch(file);
  await file.writeKeys(next, former);
  const found = await Promise.all(Array.from({ length: 100 }, () => keys.verifying(next.kid)));
  expect(found.every((key) => key !== undefined)).toBe(true);
  expect(lines).toMatchObject([{ message: "signing keys renewed", fields: { kids: [next.kid, former.kid] } }]);
  expect(await keys.verifying("unknown")).toBeUndefined();
});

test("outside production a missing file is made once, whole and for its owner alone", async () => {
  const dataDir = join(await mkdtemp(join(tmpdir(), "auth-service-data-")), "new");
  const lines: object[] = [];
  const log = Object.assign(createLog("silent"), { warn: (fields: object) => void lines.push(fields) });
  const config = parseConfig({ DATA_DIR: dataDir });
  const files = await Promise.all(Array.from({ length: 20 }, () => jwtKeysFileOf(config, log)));
  expect(new Set(files)).toEqual(new Set([join(dataDir, "jwt-keys.json")]));
  expect(await readdir(dataDir)).toEqual(["jwt-keys.json"]);
  expect((await stat(files[0]!)).mode & 0o777).toBe(0o600);
  expect(lines).toEqual([{ file: files[0] }]);
  const { keys } = await watch({ file: files[0]! });
  expect(JSON.parse(await readFile(files[0]!, "utf8"))).toMatchObject({ keys: [{ kid: keys.signing().kid }] });
  await rm(join(dataDir, ".."), { recursive: true });
});

test("a rotation under load, on two servers that read the file when they do, fails no token", async () => {
  const [former, next] = [makeJwk(), makeJwk()];
  const file = await createKeysFile(former);
  const env = { JWT_KEYS_FILE: file.file, JWT_KEYS_RELOAD_INTERVAL: "100ms" };
  const one = await launchService("grpc", { env });
  const late = { ...env, JWT_KEYS_RELOAD_INTERVAL: "1h" };
  const two = await launchService("grpc", { env: late, databaseUrl: one.databaseUrl });
  const authOfTwo = two.as(one.rootToken).auth;
  const signedIn = await (await signInBy(one))();
  const before = signedIn.accessToken;
  let { refreshToken } = signedIn;
  const kids = new Set<string | undefined>();

  /** Refreshes until the server signs with this key; each token, and the first, is good on both servers. */
  const refreshUntil = async (kid: string | undefined, least: number) => {
    for (let count = 0; count < least || ![...kids].includes(kid); count++) {
      const { tokens } = await one.auth.refreshSession({ refreshToken });
      refreshToken = tokens!.refreshToken;
      kids.add(decodeProtectedHeader(tokens!.accessToken).kid);
      for (const auth of [one.auth, authOfTwo]) {
        expect((await auth.verifyAccessToken({ accessToken: tokens!.accessToken })).active).toBe(true);
        expect((await auth.verifyAccessToken({ accessToken: before })).active).toBe(true);
      }
    }
  };
  await refreshUntil(former.kid, 10);
  await file.writeKeys(former, next);
  await refreshUntil(former.kid, 10);
  await file.writeKeys(next, former);
  await refreshUntil(next.kid, 10);
  await file.writeKeys(next);
  await expect.poll(async () => (await one.auth.getJwks({})).jwksJson).not.toContain(former.kid);
  expect((await one.auth.verifyAccessToken({ accessToken: before })).active).toBe(false);
  await two.stop();
  await one.stop();
});

test("what a key has signed is not of another that takes its place under the same kid", async () => {
  const former = makeJwk();
  const file = await createKeysFile(former);
  const env = { JWT_KEYS_FILE: file.file, JWT_KEYS_RELOAD_INTERVAL: "100ms" };
  const service = await launchService("grpc", { env });
  const { accessToken } = await (await signInBy(service))();
  const reason = async () => (await service.auth.verifyAccessToken({ accessToken })).reason;
  expect(await reason()).toBe(TokenReason.OK);
  await file.writeKeys({ ...makeJwk(), kid: former.kid });
  await expect.poll(reason).toBe(TokenReason.SIGNATURE);
  await service.stop();
});
