import { types } from "pg";
import type { DriverTypeParser } from "slonik";

const usualParser = types.getTypeParser(types.builtins.TIMESTAMPTZ) as (text: string) => Date | number | null;

// `Date.parse` is right about these, and twice as fast.
const isUsual = (text: string) => text.endsWith("+00") && text[4] === "-" && !text.startsWith("00");

/**
 * Reads a timestamptz as milliseconds, whatever the session's time zone; what is finer is cut off.
 *
 * Slonik's own hands PostgreSQL's text to `Date.parse`, which reads a year below 100 as one of the last century and nothing
 * of the seconds that a zone's offset had long ago. NaN where a Date cannot be so late, or the text is none of
 * the style that is asked for: every row refuses it.
 */
export const timestamptzParser: DriverTypeParser<number> = {
  name: "timestamptz",
  parse: (text) => (isUsual(text) ? Date.parse(text) : Number(usualParser(text) ?? NaN)),
};
