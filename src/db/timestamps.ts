import { types } from "pg";
import type { DriverTypeParser } from "slonik";

const usualParser = types.getTypeParser(types.builtins.TIMESTAMPTZ) as (text: string) => Date | number | null;

// `Date.parse` is right about these, and twice as fast.
const isUsual = (text: string) => text.endsWith("+00") && text[4] === "-" && !text.startsWith("00");

// What a Timestamp can say: the years 1 to 9999. The database has earlier and later ones, and times without end.
const FIRST_MS = Date.parse("0001-01-01T00:00:00.000Z");
const LAST_MS = Date.parse("9999-12-31T23:59:59.999Z");

/**
 * Reads a timestamptz as milliseconds, whatever the session's time zone; what is finer is cut off. A time that no
 * Timestamp holds, which a bulk load may have brought, is the nearest that one does: the whole list would else not be read.
 *
 * Slonik's own hands PostgreSQL's text to `Date.parse`, which reads a year below 100 as one of the last century and nothing
 * of the seconds that a zone's offset had long ago. NaN where a Date cannot be so late, or the text is none of
 * the style that is asked for: every row refuses it.
 */
export const timestamptzParser: DriverTypeParser<number> = {
  name: "timestamptz",
  parse: (text) =>
    isUsual(text) ? Date.parse(text) : Math.min(Math.max(Number(usualParser(text) ?? NaN), FIRST_MS), LAST_MS),
};
