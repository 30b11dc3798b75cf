import { type KeyObject, createPublicKey } from "node:crypto";
import CachePolicy from "http-cache-semantics";
import { z } from "zod";
import { boundedText } from "../bounded-text.ts";
import type { Config } from "../config.ts";
import type { Waiting } from "../rpc/call.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";

// Google's own answer has a few keys in less than 3 KB.
const ANSWER_MAX_BYTES = 65_536;
// Of an answer that says nothing of its life.
const DEFAULT_LIFE_S = 300;
// Whatever an answer says of its life: for so long at most is a key trusted that Google has withdrawn.
const LIFE_MAX_S = 86_400;
// Anybody can make up a key id: those that are unknown ask Google no more often than this, however many come.
const UNKNOWN_KEY_INTERVAL_MS = 30_000;
// The same where Google did not answer, and one of them may have been a new key's.
const UNKNOWN_KEY_RETRY_MS = 1_000;
// Below it RS256 is not safe (RFC 7518, section 3.3).
const MODULUS_MIN_BITS = 2_048;

const keySet = z.object({ keys: z.array(z.unknown()) });
const rsaKey = z.object({
  kty: z.literal("RSA"),
  kid: z.string(),
  n: z.string(),
  e: z.string(),
  alg: z.literal("RS256").optional(),
  use: z.literal("sig").optional(),
});

interface Answer {
  readonly keys: ReadonlyMap<string, KeyObject>;
  isStale(): boolean;
}

interface GoogleKeys {
  /**
   * The key with this id, from the answer that Google gave last while that is fresh.
   * @throws ID_TOKEN_INVALID for an id that Google does not know, IDENTITY_PROVIDER_UNAVAILABLE
   */
  find(waiting: Waiting, keyId: string): Promise<KeyObject>;
}

/** Kinds of keys that are not ours are passed over (RFC 7517, section 5). */
const parseKeys = (text: string): Answer["keys"] => {
  const keys = new Map<string, KeyObject>();
  for (const entry of keySet.parse(JSON.parse(text)).keys) {
    const { data: jwk } = rsaKey.safeParse(entry);
    const key = jwk && createPublicKey({ key: jwk, format: "jwk" });
    if (key && (key.asymmetricKeyDetails?.modulusLength ?? 0) >= MODULUS_MIN_BITS) keys.set(jwk.kid, key);
  }
  if (keys.size === 0) throw new Error("the answer has no RSA key for RS256");
  return keys;
};

/** Freshness by RFC 9111, as a cache of our own; a heuristic one would be without bound. */
const cachePolicy = (url: string, headers: Headers): CachePolicy => {
  // Its names are of either case (RFC 9111, 5.2), which the library does not know.
  const control = (headers.get("cache-control") ?? "").toLowerCase();
  const saysItsLife =
    headers.has("expires") || headers.has("pragma") || /\b(max-age|no-cache|no-store)\b/.test(control);
  const received = {
    ...Object.fromEntries(headers),
    "cache-control": saysItsLife ? control : `max-age=${DEFAULT_LIFE_S}`,
  };
  return new CachePolicy({ url, headers: {} }, { status: 200, headers: received }, { shared: false });
};

const fetchAnswer = async ({ jwksUrl, timeoutMs }: Config["google"]): Promise<Answer> => {
  try {
    const response = await fetch(jwksUrl, {
      headers: { accept: "application/json" },
      redirect: "error",
      signal: AbortSignal.timeout(timeoutMs),
    });
    if (response.status !== 200) throw new Error(`the answer has the status ${response.status}`);
    const policy = cachePolicy(jwksUrl, response.headers);
    const lifeS = Math.min(policy.maxAge(), LIFE_MAX_S);
    // The policy counts by the machine's clock, and who sets that back would have it trust a withdrawn key for as long again.
    const goodUntil = performance.now() + (lifeS - Math.max(0, policy.age())) * 1_000;
    const keys = parseKeys(await boundedText(response, ANSWER_MAX_BYTES));
    // Not satisfiesWithoutRevalidation: it is false for all that says must-revalidate, as Google's answers do.
    return { keys, isStale: () => policy.age() >= lifeS || performance.now() >= goodUntil };
  } catch (cause) {
    throw new Refusal("IDENTITY_PROVIDER_UNAVAILABLE", {}, { cause });
  }
};

/** Ends for one who waits when his call does, and goes on for the others. */
const waitFor = <T>(waiting: Waiting, work: Promise<T>): Promise<T> => {
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  const stay = waiting.whenOver(reject);
  void work.then(resolve, reject).finally(stay);
  return promise;
};

/**
 * Google's public keys, fetched when they are first needed and kept for as long as their answer's headers say.
 *
 * Those who need them at once share one request. A stale answer is never used, not even where Google is out of reach
 * (RFC 5861, stale-if-error): it may have a key that was withdrawn because somebody else has it.
 */
export const createGoogleKeys = (config: Config["google"]): GoogleKeys => {
  let latest: Answer | undefined;
  let underWay: Promise<Answer> | undefined;
  let forUnknown: { readonly answer: Promise<Answer>; againMs: number } | undefined;

  const refresh = (): Promise<Answer> => {
    underWay ??= fetchAnswer(config)
      .then((answer) => (latest = answer))
      .finally(() => (underWay = undefined));
    return underWay;
  };

  const refreshForUnknown = (): Promise<Answer> => {
    if (forUnknown && performance.now() < forUnknown.againMs) return forUnknown.answer;
    const asked = { answer: refresh(), againMs: performance.now() + UNKNOWN_KEY_INTERVAL_MS };
    asked.answer.catch(() => (asked.againMs = performance.now() + UNKNOWN_KEY_RETRY_MS));
    forUnknown = asked;
    return asked.answer;
  };

  return {
    async find(waiting, keyId) {
      const { keys } = !latest || latest.isStale() ? await waitFor(waiting, refresh()) : latest;
      const known = keys.get(keyId);
      if (known) return known;
      await waitFor(waiting, refreshForUnknown());
      const key = latest?.keys.get(keyId);
      if (!key) throw refusal("ID_TOKEN_INVALID");
      return key;
    },
  };
};
