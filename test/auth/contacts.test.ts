import fc from "fast-check";
import { expect, test } from "vitest";
import { normalEmail, normalPhone } from "../../src/auth/contacts.ts";

test.each([
  "+14155552671",
  " +1 (415) 555-2671 ",
  "+1.415.555.2671",
  "(+1) 415 555 2671",
  "( +1 )415/555-2671",
  "+١٤١٥٥٥٥٢٦٧١",
])("%j is a phone number, and one way to write it is stored", (text) => {
  expect(normalPhone(text)).toBe("+14155552671");
});

test.each([
  ["+49 (0) 151 23456789", "+4915123456789"],
  ["+39 06 698 12345", "+390669812345"],
  ["(+353) 087 123 4567", "+353871234567"],
])("%j is stored as %s, for not every zero goes", (text, stored) => {
  expect(normalPhone(text)).toBe(stored);
});

test("what is stored of a phone number is what it is found by", () => {
  const digits = fc.stringMatching(/^[0-9 ()/-]{6,18}$/);
  const code = fc.constantFrom("1", "39", "44", "49", "54", "81", "800", "980");
  const property = fc.property(code, digits, (country, rest) => {
    const stored = normalPhone(`+${country}${rest}`);
    if (stored === undefined) return;
    expect(stored).toMatch(/^\+\d{2,15}$/);
    expect(normalPhone(stored)).toBe(stored);
  });
  fc.assert(property, { numRuns: 2_000 });
});

test.each([
  "",
  "+",
  "4155552671",
  "0014155552671",
  "+1415",
  "+1415555267100000",
  "+999123456789",
  // What is more than a number is none, however much of it could be one.
  "call +14155552671",
  "+14155552671 or so",
  "+14155552671, +14155552672",
  "+14155552671;ext=5",
  "+1 415 555 2671 x5",
  "+1 415 555 CODE",
  // Read once, each still has a zero that is no part of it.
  "+49 00 151 23456789",
  "+49 (0) 0151 23456789",
  "+813152338541055727",
])("%j is no phone number", (text) => {
  expect(normalPhone(text)).toBeUndefined();
});

test.each([
  [" Ann@Example.COM\t", "ann@example.com"],
  ["o'neil+news@sub.example.co", "o'neil+news@sub.example.co"],
  // KELVIN SIGN: one letter has one spelling, so that none can be taken twice.
  ["\u212Aim@example.com", "kim@example.com"],
])("%j is stored as %s", (text, stored) => {
  expect(normalEmail(text)).toBe(stored);
});

test.each([
  "",
  "ann",
  "ann@",
  "@example.com",
  "ann@example.com, bob@example.com",
  "Ann <ann@example.com>",
  "ann@example.com\nbcc:bob@example.com",
  "ann@exa mple.com",
  // Lower case makes two characters of it, and letters beyond ASCII may look like others.
  "\u0130rem@example.com",
  "\u0430nn@example.com",
  `${"a".repeat(243)}@example.com`,
])("%j is no e-mail address", (text) => {
  expect(normalEmail(text)).toBeUndefined();
});
