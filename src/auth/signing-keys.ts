import { createPrivateKey } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { type CryptoKey, importJWK } from "jose";
import { z } from "zod";
import { ConfigError } from "../config.ts";
import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import type { Log } from "../log.ts";
import { startPolling } from "../polling.ts";
import type { Handlers } from "../rpc/methods.ts";
import { readConfigured } from "../without-waiting.ts";

/** The one algorithm of access tokens (RFC 8037). */
export const ALGORITHM = "EdDSA";

// An unknown `kid` has the file read at once, but no flood of them reads it more often than this.
const REREAD_MS = 100;

/**
 * The keys of access tokens, as their file has them now: the first signs, all verify.
 *
 * A rotation that fails no token has three steps, each after every replica has read the former (JWT_KEYS_RELOAD_INTERVAL,
 * and as long as the platform takes to bring a changed secret to the file) and caches of the JWKS have ended (60 s):
 * 1. The new key is put second, so that all replicas and all who fetch the JWKS know it before it signs.
 * 2. The new key is put first, the former second: it signs no more, and what it has signed still verifies.
 * 3. The former is taken out, ACCESS_TOKEN_TTL after the second step.
 */
export interface SigningKeys {
  /** The key that signs. */
  signing(): SigningKey;
  /**
   * The key that verifies what names this `kid`, or undefined where there is none: the file is read again before that is
   * said, for another replica may already sign with a key that this one has not read yet.
   */
  verifying(kid: string): Promise<CryptoKey | undefined>;
  /** What is published: a JWKS with `kty, crv, x, kid, alg, use` of each key, and nothing private. */
  jwks(): string;
  close(): void;
}

interface SigningKey {
  readonly kid: string;
  readonly privateKey: CryptoKey;
}

interface SigningKeysOptions {
  readonly file: string;
  /** How a fault calls the file: by default as the variable that names it. */
  readonly name?: string;
  readonly pollMs: number;
  readonly log: Log;
}

const bytes32 = z.string().regex(/^[A-Za-z0-9_-]{43}$/);

const keyFile = z.object({
  keys: z
    .array(
      z.object({
        kty: z.literal("OKP"),
        crv: z.literal("Ed25519"),
        x: bytes32,
        d: bytes32.optional(),
        kid: z.string().min(1).max(200),
        alg: z.enum([ALGORITHM, "Ed25519"]).optional(),
        use: z.literal("sig").optional(),
      }),
    )
    .min(1),
});
type Jwk = z.output<typeof keyFile>["keys"][number];

interface KeySet {
  readonly text: string;
  readonly signing: SigningKey;
  readonly verifying: ReadonlyMap<string, CryptoKey>;
  readonly jwks: string;
}

/** What is wrong with the file, without a word of what stands in it. */
class KeyFileError extends Error {}

const readText = async (file: string): Promise<string> => {
  try {
    return String(await readConfigured(file));
  } catch (error) {
    throw new KeyFileError(`cannot be read: ${(error as NodeJS.ErrnoException).code ?? "unknown error"}`);
  }
};

const parse = (text: string): readonly Jwk[] => {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new KeyFileError("is not JSON");
  }
  const { success, data, error } = keyFile.safeParse(json);
  if (!success) {
    const paths = new Set(error.issues.map(({ path }) => path.join(".")));
    throw new KeyFileError(`is no JWKS of Ed25519 keys with kid: see ${[...paths].join(", ") || "the whole"}`);
  }
  if (new Set(data.keys.map(({ kid }) => kid)).size < data.keys.length) throw new KeyFileError("has a kid twice");
  return data.keys;
};

// Node takes a private key with any x beside it, and says itself which one belongs to d.
const isPair = ({ kty, crv, x, d = "" }: Jwk): boolean =>
  createPrivateKey({ key: { kty, crv, x, d }, format: "jwk" }).export({ format: "jwk" }).x === x;

const publicPart = ({ kty, crv, x, kid }: Jwk) => ({ kty, crv, x, kid, alg: ALGORITHM, use: "sig" });

const imported = async (jwk: Parameters<typeof importJWK>[0]): Promise<CryptoKey> =>
  (await importJWK(jwk, ALGORITHM)) as CryptoKey;

const keySetOf = async (text: string): Promise<KeySet> => {
  const jwks = parse(text);
  const [first] = jwks;
  if (!first?.d) throw new KeyFileError("has a first key without d: it could not sign");
  for (const [index, jwk] of jwks.entries()) {
    if (jwk.d !== undefined && !isPair(jwk))
      throw new KeyFileError(`has an x that does not belong to d: keys.${index}`);
  }
  const { kty, crv, x, d, kid } = first;
  return {
    text,
    signing: { kid, privateKey: await imported({ kty, crv, x, d }) },
    verifying: new Map(await Promise.all(jwks.map(async (jwk) => [jwk.kid, await imported(publicPart(jwk))] as const))),
    jwks: JSON.stringify({ keys: jwks.map(publicPart) }),
  };
};

const readAtStart = async (file: string, name: string): Promise<KeySet> => {
  try {
    return await keySetOf(await readText(file));
  } catch (error) {
    if (!(error instanceof KeyFileError)) throw error;
    throw new ConfigError([`${name} ${error.message}`]);
  }
};

/**
 * Reads the keys, and again every `pollMs`: a file that is bad, or half written, keeps the former keys.
 * @throws ConfigError where they cannot be read at the start.
 */
export const watchSigningKeys = async ({
  file,
  name = "JWT_KEYS_FILE",
  pollMs,
  log,
}: SigningKeysOptions): Promise<SigningKeys> => {
  let keys = await readAtStart(file, name);
  let told: string | undefined;

  const poll = async () => {
    try {
      const text = await readText(file);
      if (text !== keys.text) {
        keys = await keySetOf(text);
        log.info({ kids: [...keys.verifying.keys()] }, "signing keys renewed");
      }
      told = undefined;
    } catch (error) {
      const reason = error instanceof KeyFileError ? error.message : "cannot be used";
      // Once for each fault: a file that stays broken for a week is one line, not one every poll.
      if (told !== reason) log.warn({ file, reason }, "signing keys not renewed: the former stay in use");
      told = reason;
    }
  };

  const polling = startPolling(poll, pollMs);
  let rereadAt = 0;
  let rereading: Promise<void> | undefined;
  // Whoever asks waits for a reading that begins after he asked, and shares it with all who ask until then.
  const reread = () =>
    (rereading ??= sleep(Math.max(0, rereadAt - performance.now())).then(() => {
      rereadAt = performance.now() + REREAD_MS;
      rereading = undefined;
      return polling.now();
    }));

  return {
    signing: () => keys.signing,
    async verifying(kid) {
      if (!keys.verifying.has(kid)) await reread();
      return keys.verifying.get(kid);
    },
    jwks: () => keys.jwks,
    close: polling.stop,
  };
};

export const signingKeyHandlers = ({ keys }: { readonly keys: SigningKeys }) =>
  ({
    getJwks: () => Promise.resolve({ jwksJson: keys.jwks() }),
  }) satisfies Partial<Handlers<typeof AuthService>>;
