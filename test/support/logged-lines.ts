import { type Log, createLog } from "../../src/log.ts";

/** A line of the log, as its readers parse it. */
interface Line {
  readonly request_id?: string;
  readonly code?: string;
  readonly reason?: string;
  readonly readiness?: string;
  readonly ms?: number;
  readonly messages?: number;
  readonly pending_migrations?: readonly string[];
}

/** A log that is kept. */
export interface LoggedLines {
  readonly log: Log;
  /** Every line, in the order of writing. */
  readonly all: readonly Line[];
  /** The lines of one request. */
  of(requestId: string): readonly Line[];
}

export const loggedLines = (): LoggedLines => {
  const lines: Line[] = [];
  return {
    log: createLog("info", { write: (line) => void lines.push(JSON.parse(line) as Line) }),
    all: lines,
    of: (requestId) => lines.filter(({ request_id: id }) => id === requestId),
  };
};
