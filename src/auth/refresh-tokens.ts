import { timingSafeEqual } from "node:crypto";
import type { Macs } from "../macs.ts";

/** What of a session's row its refresh tokens are derived from. */
export interface RefreshSubject {
  readonly sessionId: string;
  /** 32 random bytes: who knows the session's id cannot make its tokens, even with another session's MAC. */
  readonly seed: Buffer;
}

/** What a refresh token names; nothing of it is proven yet. */
export interface RefreshToken {
  readonly sessionId: string;
  readonly generation: number;
  readonly mac: string;
}

const FORMAT = /^rt_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_(0|[1-9]\d{0,8})_([A-Za-z0-9_-]{43})$/;

/** Undefined where it is none by its form: no query is spent on those. */
export const parseRefreshToken = (token: string): RefreshToken | undefined => {
  const [, sessionId, generation, mac] = FORMAT.exec(token) ?? [];
  if (sessionId === undefined || generation === undefined || mac === undefined) return undefined;
  return { sessionId, generation: Number(generation), mac };
};

const derived = ({ sessionId, seed }: RefreshSubject, generation: number) =>
  `${sessionId}\0${generation}\0${seed.toString("base64url")}`;

const tokenText = ({ sessionId }: RefreshSubject, generation: number, mac: Buffer) =>
  `rt_${sessionId}_${generation}_${mac.toString("base64url")}`;

/** The token of a session's generation, `rt_<session id>_<generation>_<MAC>`, under the newest pepper. */
export const newestRefreshToken = (macs: Macs, subject: RefreshSubject, generation: number): string =>
  tokenText(subject, generation, macs.newest("refresh-token", derived(subject, generation)));

/** The token that `tokenHash` was stored of, again; undefined where its pepper is no longer configured. */
export const sameRefreshToken = (
  macs: Macs,
  tokenHash: string,
  subject: RefreshSubject,
  generation: number,
): string | undefined => {
  const mac = macs.underPepperOf(tokenHash, "refresh-token", derived(subject, generation));
  return mac && tokenText(subject, generation, mac);
};

/** Whether a token is genuine, under any pepper: the former generation's may be older than the row's. Constant in time. */
export const isGenuine = (macs: Macs, subject: RefreshSubject, { generation, mac }: RefreshToken): boolean => {
  // The text is compared, not the bytes: base64 has several spellings of the same bytes, and a token shall have one.
  const shown = Buffer.from(mac);
  let genuine = false;
  for (const tag of macs.tags("refresh-token", derived(subject, generation))) {
    if (timingSafeEqual(shown, Buffer.from(tag.slice(tag.indexOf(":") + 1)))) genuine = true;
  }
  return genuine;
};
