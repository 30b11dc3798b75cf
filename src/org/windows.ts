import { z } from "zod";
import type { AssignRoleRequest } from "../gen/org/v1/org_pb.ts";
import { type Refusal, invalid } from "../rpc/refusal.ts";
import { microsecondsOf, timestampOf } from "../rpc/timestamps.ts";

/** When an assignment or a grant counts: from its start, inclusive, to its end, exclusive. In microseconds since 1970. */
export const windowColumns = {
  start_us: z.bigint(),
  end_us: z.bigint().nullable(),
  /** When it was cancelled, before it began: it never counted. */
  cancelled_us: z.bigint().nullable(),
};
export type WindowRow = z.output<z.ZodObject<typeof windowColumns>>;

/** What a request says of a window; null is what it leaves out. */
export interface WindowRequest {
  readonly startUs: bigint | null;
  readonly endUs: bigint | null;
}

/**
 * A time as PostgreSQL reads it. Text, since an interval of so many microseconds is counted by a double there: the last
 * of them are lost from the year 2255 on, and the end of the year 9999 becomes the year 10000.
 */
export const timeText = (us: bigint | null): string | null => {
  if (us === null) return null;
  const micros = ((us % 1_000n) + 1_000n) % 1_000n;
  const milliseconds = new Date(Number((us - micros) / 1_000n)).toISOString();
  return `${milliseconds.slice(0, -1)}${String(micros).padStart(3, "0")}Z`;
};

export const endTooEarly = (): Refusal => invalid({ field: "end_time", description: "must be later than the start" });

/** @throws INVALID_REQUEST where a window would end before it begins; one without a start begins now. */
export const readWindow = (request: Pick<AssignRoleRequest, "startTime" | "endTime">): WindowRequest => {
  const startUs = microsecondsOf(request.startTime);
  const endUs = microsecondsOf(request.endTime);
  if (startUs !== null && endUs !== null && endUs <= startUs) throw endTooEarly();
  return { startUs, endUs };
};

/** Whether a repeated request says nothing else than the first: what it leaves out is not compared. */
export const isSameWindow = (row: WindowRow, { startUs, endUs }: WindowRequest): boolean =>
  (startUs === null || startUs === row.start_us) && (endUs === null || endUs === row.end_us);

export const windowMessage = (row: WindowRow) => ({
  startTime: timestampOf(row.start_us),
  ...(row.end_us !== null && { endTime: timestampOf(row.end_us) }),
  ...(row.cancelled_us !== null && { cancelTime: timestampOf(row.cancelled_us) }),
});

/**
 * A window that is ended at `atUs`, or now where that is null: undefined where it stays as it is.
 *
 * An end that was planned moves, earlier or later. One that would not have begun by then is cancelled, since an end
 * comes after its start; for the same reason one that begins at this very microsecond ends at the next.
 * @returns INVALID_REQUEST for a time in the past, unless the window is over: a repeat is answered as the first was.
 */
export const endWindow = (row: WindowRow, atUs: bigint | null, nowUs: bigint): WindowRow | Refusal | undefined => {
  if (row.cancelled_us !== null || (row.end_us !== null && row.end_us <= nowUs)) return undefined;
  const askedUs = atUs ?? nowUs;
  if (askedUs < nowUs) return invalid({ field: "end_time", description: "must not be in the past" });
  if (row.start_us > nowUs && row.start_us >= askedUs) return { ...row, cancelled_us: nowUs };
  const endUs = askedUs > row.start_us ? askedUs : row.start_us + 1n;
  return endUs === row.end_us ? undefined : { ...row, end_us: endUs };
};

/** What an event says of a window. */
export const windowPayload = ({ start_us, end_us, cancelled_us }: WindowRow): Readonly<Record<string, string>> => {
  const times = { start_time: start_us, end_time: end_us, cancel_time: cancelled_us };
  return Object.fromEntries(
    Object.entries(times).flatMap(([name, us]) => {
      const text = timeText(us);
      return text === null ? [] : [[name, text]];
    }),
  );
};
