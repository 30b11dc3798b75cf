import type { Page } from "../rpc/page.ts";

/** Without anything found one row at most, with nulls, for the cut. */
type StreamRow<Found> = { readonly [Key in keyof Found]: Found[Key] | null } & { readonly cut_id: string | null };

/**
 * Cuts a page of what several ordered streams were merged to: a full page goes on after its last row, a short one after
 * the last key up to which every stream was read, and where all were read to their end the list has ended.
 * Statements ask for `page.size + 1` rows.
 */
export const cutStreams = <Found extends object>(
  page: Page<string>,
  rows: readonly StreamRow<Found>[],
  idOf: (row: StreamRow<Found>) => string | null,
): { rows: readonly Found[]; nextPageToken: string } => {
  const found = rows.filter((row): row is StreamRow<Found> & Found => idOf(row) !== null);
  const last = found[page.size - 1];
  const after = found.length > page.size && last ? idOf(last) : (rows[0]?.cut_id ?? null);
  return { rows: found.slice(0, page.size), nextPageToken: after === null ? "" : page.tokenAfter(after) };
};

const HEX_DIGITS = 32;

/** The least id after another one, the least of all where there is none, and null after the greatest. */
export const leastAfter = (id: string | undefined): string | null => {
  if (id === undefined) return "0".repeat(HEX_DIGITS);
  const next = (BigInt(`0x${id.replaceAll("-", "")}`) + 1n).toString(16).padStart(HEX_DIGITS, "0");
  return next.length > HEX_DIGITS ? null : next;
};
