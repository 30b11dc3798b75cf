import { parsePhoneNumberFromString } from "libphonenumber-js";
import { z } from "zod";
import { invalid } from "../rpc/refusal.ts";

/** How a user is reached, and named at a login. */
export type ContactKind = "email" | "phone";

export interface Contact {
  readonly kind: ContactKind;
  /** Normalised: what is stored and compared. */
  readonly text: string;
}

// What browsers take in <input type="email"> (WHATWG HTML): a stricter rule would turn people away who have such one.
const email = z.email({ pattern: z.regexes.html5Email }).max(254);

/** Trimmed and lower-cased, or undefined for what is no e-mail address. */
export const normalEmail = (text: string): string | undefined => email.safeParse(text.trim().toLowerCase()).data;

const COUNTRY_CODE_IN_PARENTHESES = /^\(\s*(\+\d{1,3})\s*\)/;

/** Without what people set between a number's digits. */
export const withoutSeparators = (text: string): string => text.replace(/[\s().-]/g, "");

/** The plus sign and fifteen digits (ITU-T E.164, 6.2.1). */
const E164_LENGTH_MAX = 16;

/** In E.164, such as `+14155552671`, or undefined for what cannot be a number with its country code. */
export const normalPhone = (text: string): string | undefined => {
  const written = text.trim().replace(COUNTRY_CODE_IN_PARENTHESES, "$1");
  // The whole text: otherwise the library looks for a number in it, and takes the first of two, or "call +1415…" for one.
  const phone = parsePhoneNumberFromString(written, { extract: false });
  // Possible, not valid: numbering plans grow faster than lists of them.
  if (!phone?.isPossible() || phone.ext !== undefined || phone.number.length > E164_LENGTH_MAX) return undefined;
  // Of two leading zeros the library takes one away, and the other when it reads what is left: no user would be found by it.
  return parsePhoneNumberFromString(phone.number, { extract: false })?.number === phone.number
    ? phone.number
    : undefined;
};

/** What is said of what is no contact. */
export const DESCRIPTIONS = {
  email: "must be an e-mail address",
  phone: "must be a phone number with its country code, such as +14155552671",
} as const;

/**
 * A contact as it is stored.
 * @param field the request's field that it came in
 * @throws INVALID_REQUEST
 */
export const readContact = (kind: ContactKind, text: string, field: string = kind): Contact => {
  const normal = kind === "email" ? normalEmail(text) : normalPhone(text);
  if (normal === undefined) throw invalid({ field, description: DESCRIPTIONS[kind] });
  return { kind, text: normal };
};
