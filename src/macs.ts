import { type KeyObject, createHmac, createSecretKey, timingSafeEqual } from "node:crypto";
import type { Pepper } from "./config-values.ts";

/** What a MAC is for: it goes into it, so that none can stand for another. */
type MacPurpose =
  "credential" | "refresh-token" | "code" | "code-hash" | "network" | "throttle" | "invitation" | "invitation-hash";

/** HMAC-SHA-256 under the peppers: the last makes, all verify. */
export interface Macs {
  /** Under the newest pepper. */
  newest(purpose: MacPurpose, text: string): Buffer;
  /** Under the pepper that this tag was made under, or undefined where it is no longer configured. */
  underPepperOf(tag: string, purpose: MacPurpose, text: string): Buffer | undefined;
  /** `<pepper version>:<MAC in base64url>` under the newest. */
  tag(purpose: MacPurpose, text: string): string;
  /** Under every pepper, as `tag` writes them: what is looked up may have been made under any. */
  tags(purpose: MacPurpose, text: string): readonly string[];
  /** Constant in time. False also where the tag's pepper is no longer configured. */
  matches(purpose: MacPurpose, text: string, tag: string): boolean;
}

/** A pepper, ready for use. */
interface Key {
  readonly version: number;
  readonly key: KeyObject;
}

// Credentials were hashed before anything else was, as they are.
const bytes = (purpose: MacPurpose, text: string) => (purpose === "credential" ? text : `${purpose}\0${text}`);

export const createMacs = (configured: readonly Pepper[]): Macs => {
  // Of bytes Node would make such a key for each MAC, which is three quarters of its cost.
  const peppers = configured.map(({ version, key }) => ({ version, key: createSecretKey(key) }));
  const newest = peppers.at(-1);
  if (!newest) throw new TypeError("at least one pepper is needed");
  const mac = ({ key }: Key, purpose: MacPurpose, text: string) =>
    createHmac("sha256", key).update(bytes(purpose, text)).digest();
  const tagUnder = (pepper: Key, purpose: MacPurpose, text: string) =>
    `${pepper.version}:${mac(pepper, purpose, text).toString("base64url")}`;
  const pepperOf = (tag: string) => peppers.find(({ version }) => version === Number.parseInt(tag, 10));

  return {
    newest: (purpose, text) => mac(newest, purpose, text),
    underPepperOf(tag, purpose, text) {
      const pepper = pepperOf(tag);
      return pepper && mac(pepper, purpose, text);
    },
    tag: (purpose, text) => tagUnder(newest, purpose, text),
    tags: (purpose, text) => peppers.map((pepper) => tagUnder(pepper, purpose, text)),
    matches(purpose, text, tag) {
      const pepper = pepperOf(tag);
      const expected = Buffer.from(tag.slice(tag.indexOf(":") + 1), "base64url");
      const actual = mac(pepper ?? newest, purpose, text);
      return expected.length === actual.length && timingSafeEqual(expected, actual) && pepper !== undefined;
    },
  };
};
