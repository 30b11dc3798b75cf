import { onFirstUse } from "../first-use.ts";
import { Refusal, invalid } from "../rpc/refusal.ts";
import { withoutSeparators } from "./contacts.ts";
import { normalPassword } from "./normal-passwords.ts";

/** In characters (code points) after NFKC. */
const LENGTH_MIN = 10;
const LENGTH_MAX = 256;

// Upper case first, which brings together what lower case alone keeps apart, such as ß and SS.
const folded = (text: string) => normalPassword(text).toUpperCase().toLowerCase();

const isLongEnough = (text: string) => Array.from(text).length >= LENGTH_MIN;

// 50,000 words are not for a start, nor for who never sets a password.
const commonPasswords = onFirstUse(async () => {
  const { dictionary } = await import("@zxcvbn-ts/language-common");
  // What is shorter is refused for its length.
  return new Set(dictionary["passwords-common"].filter(isLongEnough).map(folded));
});

/** The forms of a contact or name that its owner would use as a password. */
const formsOf = (text: string) => {
  const own = folded(text.trim());
  return [own, own.replace(/@[^@]*$/, "")];
};

/** A number's digits without the zeros before its national form; undefined of other text. */
const digitsOf = (text: string) => {
  const digits = withoutSeparators(text).replaceAll("+", "");
  return /^\d+$/.test(digits) ? digits.replace(/^0+/, "") : undefined;
};

/** As many digits say whose number it is, whatever of the country's code is left out. */
const NATIONAL_DIGITS = 7;

const isNumberOf = (text: string, phone: string) => {
  const digits = digitsOf(text);
  return digits !== undefined && digits.length >= NATIONAL_DIGITS && digitsOf(phone)?.endsWith(digits) === true;
};

/** @param text the password, folded. */
const isOwn = (text: string, part: string) =>
  formsOf(part).includes(text.trim()) || (part.startsWith("+") && isNumberOf(text, part));

const weakness = async (password: string, own: readonly (string | null | undefined)[]) => {
  if (!isLongEnough(password)) return `must have at least ${LENGTH_MIN} characters`;
  const text = folded(password);
  if (own.some((part) => part && isOwn(text, part))) return "must not be the user's own contact or name";
  return (await commonPasswords()).has(text) ? "must not be a common password" : undefined;
};

/**
 * A new password in the form that is hashed. There is no rule on classes of characters.
 * @param field the request's field that it came in
 * @param own the user's e-mail address, phone number and display name
 * @throws PASSWORD_TOO_WEAK with the field and why, INVALID_REQUEST where it is too long.
 */
export const checkNewPassword = async (
  password: string,
  field: string,
  own: readonly (string | null | undefined)[],
): Promise<string> => {
  const normal = normalPassword(password);
  if (Array.from(normal).length > LENGTH_MAX) {
    throw invalid({ field, description: `must have at most ${LENGTH_MAX} characters` });
  }
  const description = await weakness(normal, own);
  if (description) throw new Refusal("PASSWORD_TOO_WEAK", {}, { violations: [{ field, description }] });
  return normal;
};
