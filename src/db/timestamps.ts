import type { DriverTypeParser } from "slonik";

const TIMESTAMP =
  /^(?<year>\d{4,6})-(?<month>\d\d)-(?<day>\d\d) (?<clock>\d\d:\d\d:\d\d(?:\.\d{1,6})?)(?<sign>[+-])(?<offset>[\d:]+?)(?<bc> BC)?$/;

const SECONDS_IN = [3_600, 60, 1];

/** Seconds of `hours`, `hours:minutes` or `hours:minutes:seconds`. */
const secondsOf = (clock: string): number =>
  clock.split(":").reduce((sum, part, index) => sum + Number(part) * (SECONDS_IN[index] ?? 0), 0);

// The year 0 of ISO 8601 is PostgreSQL's 1 BC.
const isoYear = (year: number): string =>
  `${year < 0 ? "-" : "+"}${String(Math.abs(year)).padStart(6, "0")}`.replace("-000000", "+000000");

// `Date.parse` is right about these, and several times as fast.
const isUsual = (text: string) => text.endsWith("+00") && text[4] === "-" && !text.startsWith("00");

const parse = (text: string): number => {
  if (isUsual(text)) return Date.parse(text);
  if (text === "infinity") return Infinity;
  if (text === "-infinity") return -Infinity;
  const parts = TIMESTAMP.exec(text)?.groups;
  if (!parts) return NaN;
  const { year, month = "", day = "", clock = "", sign, offset = "", bc } = parts;
  const local = Date.parse(`${isoYear(bc ? 1 - Number(year) : Number(year))}-${month}-${day}T${clock}Z`);
  return local - (sign === "-" ? -1_000 : 1_000) * secondsOf(offset);
};

/**
 * Reads a timestamptz as milliseconds, whatever the session's time zone; what is finer is cut off.
 *
 * Slonik's own hands PostgreSQL's text to `Date.parse`, which reads a year below 100 as one of the last century and nothing
 * of the seconds that a zone's offset had long ago. NaN where a Date cannot be so late.
 */
export const timestamptzParser: DriverTypeParser<number> = { name: "timestamptz", parse };
