import { z } from "zod";
import type { Page } from "./page.ts";

/**
 * Rows that a page looks through, in the order of an index. Filters that no index serves are applied after, so that a
 * page costs the same however rare what it looks for is: it may be short, and only its token says whether there is more.
 */
export const CANDIDATES = 2_000;

/** Statements answer with the candidates that match, and with the last whether it does or not. */
export const candidateColumns = { matches: z.boolean(), position: z.bigint() };
type CandidateRow = z.output<z.ZodObject<typeof candidateColumns>>;

/** Whether there may be more of a list after a row that was answered: it is the last that was looked at. */
export const isLastCandidate = ({ position }: Pick<CandidateRow, "position">): boolean =>
  position === BigInt(CANDIDATES);

/**
 * Cuts what was asked for beyond the page: a full page goes on after its last row, a short one after the last candidate.
 * Statements ask for `page.size + 1` rows.
 */
export const cutCandidates = <Row extends CandidateRow, Key>(
  page: Page<Key>,
  rows: readonly Row[],
  keyOf: (row: Row) => Key,
): { rows: readonly Row[]; nextPageToken: string } => {
  const found = rows.filter(({ matches }) => matches);
  const last = found.length > page.size ? found[page.size - 1] : rows.find(isLastCandidate);
  return { rows: found.slice(0, page.size), nextPageToken: last ? page.tokenAfter(keyOf(last)) : "" };
};
