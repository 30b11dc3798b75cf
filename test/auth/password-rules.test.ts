import fc from "fast-check";
import { expect, test } from "vitest";
import { normalPassword } from "../../src/auth/normal-passwords.ts";
import { checkNewPassword } from "../../src/auth/password-rules.ts";
import { Refusal } from "../../src/rpc/refusal.ts";

const OWN = ["ann.lovelace@example.com", "+14155552671", "Ann Straße"];

const refusalOf = (password: string, own: readonly (string | null | undefined)[] = []) =>
  checkNewPassword(password, "new_password", own).then(
    () => undefined,
    (error: unknown) => {
      if (!(error instanceof Refusal)) throw error;
      expect(error.message).not.toContain(password);
      return { reason: error.reason, violations: error.violations };
    },
  );

const weak = (description: string) => ({
  reason: "PASSWORD_TOO_WEAK",
  violations: [{ field: "new_password", description }],
});
const SHORT = weak("must have at least 10 characters");
const OWN_TEXT = weak("must not be the user's own contact or name");
const COMMON = weak("must not be a common password");

test.each([
  ["nine chars", "abcdefghi", SHORT],
  ["nine characters of two UTF-16 units each", "😀".repeat(9), SHORT],
  ["ten code points that NFKC makes five of", "e\u0301".repeat(5), SHORT],
  ["a common password", "qwertyuiop", COMMON],
  ["a common password in another case", "QwertyUIOP", COMMON],
  ["a common password in full-width letters", "ｑｗｅｒｔｙｕｉｏｐ", COMMON],
  ["the user's e-mail", "Ann.Lovelace@Example.com", OWN_TEXT],
  ["the e-mail's local part", "ANN.LOVELACE", OWN_TEXT],
  ["the user's phone", "+14155552671", OWN_TEXT],
  ["the user's phone without its plus", "14155552671", OWN_TEXT],
  ["the user's phone with blanks and hyphens", "+1 415-555-2671 ", OWN_TEXT],
  ["the user's phone as it is dialled at home", "(0415) 555 2671", OWN_TEXT],
  ["the user's phone as it is dialled from abroad", "00 1 415 555 2671", OWN_TEXT],
  ["seven digits of the user's phone behind zeros", "000 555 2671", OWN_TEXT],
  ["the user's e-mail and a blank", "ann.lovelace@example.com ", OWN_TEXT],
  ["the user's name", "ann straße", OWN_TEXT],
  ["the user's name in capitals", "ANN STRASSE", OWN_TEXT],
])("%s is too weak", async (_, password, expected) => {
  expect(await refusalOf(password, OWN)).toEqual(expected);
});

test.each([
  ["ten characters", "abcdefghi!"],
  ["ten emojis", "😀".repeat(10)],
  ["letters alone", "correct horse battery"],
  ["spaces at its ends", "  abcdefghi  "],
  ["what has the user's e-mail in it", "ann.lovelace@example.com is me"],
  ["another number", "+1 415-555-2670"],
  ["a few digits of the user's phone", "0000 552671"],
  ["256 characters", "é".repeat(256)],
])("a password of %s is taken", async (_, password) => {
  expect(await checkNewPassword(password, "password", OWN)).toBe(password);
});

test("a name is the user's own without the blanks around it", async () => {
  expect(await refusalOf("ann straße", [" Ann Straße "])).toEqual(OWN_TEXT);
});

test("a user without contact or name has nothing to be compared with", async () => {
  expect(await refusalOf("abcdefghi!", [null, undefined, ""])).toBeUndefined();
});

test("what NFKC makes longer than 256 characters is no valid request", async () => {
  const violations = [{ field: "new_password", description: "must have at most 256 characters" }];
  expect(await refusalOf("\ufdfa".repeat(15))).toEqual({ reason: "INVALID_REQUEST", violations });
});

test("composed and decomposed forms are one password, and normalising twice changes nothing", async () => {
  expect(await checkNewPassword("cafe\u0301 au lait", "password", [])).toBe("caf\u00e9 au lait");
  const property = fc.property(fc.string({ unit: "grapheme" }), (text) => {
    expect(normalPassword(text.normalize("NFD"))).toBe(normalPassword(text));
    expect(normalPassword(normalPassword(text))).toBe(normalPassword(text));
  });
  fc.assert(property);
});
