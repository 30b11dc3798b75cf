import { sqlStateOf } from "./db/sql-state.ts";
import { type DestinationStream, pino, stdSerializers, type Logger } from "pino";

export type Log = Logger;

// PostgreSQL quotes the offending value in messages of these classes (data exception, integrity violation, syntax).
const QUOTES_VALUES = /^(22|23|42)/;

interface DatabaseFault {
  readonly code?: unknown;
  readonly constraint?: unknown;
  readonly table?: unknown;
  readonly column?: unknown;
}

const frames = (stack: string | undefined) => stack?.split("\n").filter((line) => /^\s+at /.test(line));

/** Never `detail`, `values`, `row` or `where`: database errors carry what callers sent. */
const errorSerializer = (error: unknown): unknown => {
  if (!(error instanceof Error)) return { type: typeof error };
  const { code, constraint, table, column } = error as Error & DatabaseFault;
  const cause: unknown = error.cause;
  const quotes = QUOTES_VALUES.test(sqlStateOf(error) ?? "") || error.constructor.name === "InvalidInputError";
  return {
    type: error.constructor.name,
    message: quotes ? undefined : error.message,
    code,
    constraint,
    table,
    column,
    stack: frames(error.stack),
    cause: cause === undefined ? undefined : errorSerializer(cause),
  };
};

/** The time as pino wants it; written anew once a millisecond, in which a busy server logs ten lines. */
const millisecondClock = () => {
  let at = 0;
  let text = "";
  return () => {
    const now = Date.now();
    if (now !== at) {
      at = now;
      text = `,"time":"${new Date(now).toISOString()}"`;
    }
    return text;
  };
};

/** How many characters are written at once, a pipe's whole room, and how long a line may wait for others, in milliseconds. */
const GATHER = { characters: 64_000, ms: 200 } as const;

/**
 * Stdout for lines that are gathered before they are written, since one write a call is a third of a call's cost. They are
 * gathered here, as one text: sonic-boom counts the bytes of all that it has gathered anew with each line, or wants
 * each as a Buffer, and either costs as much again as making the line.
 */
const gatheringStdout = () => {
  const stdout = pino.destination({ dest: 1, sync: false });
  let gathered = "";
  const pass = () => {
    if (gathered !== "") stdout.write(gathered);
    gathered = "";
  };
  setInterval(pass, GATHER.ms).unref();
  return {
    write(line: string) {
      gathered += line;
      if (gathered.length >= GATHER.characters) pass();
    },
    flush(done: (error?: Error) => void) {
      pass();
      stdout.flush(done);
    },
  };
};

/**
 * JSON lines on stdout, or readable ones where a terminal looks. They are gathered: `flush` before exit.
 *
 * @param destination where the lines go instead.
 */
export const createLog = (level: string, destination?: DestinationStream): Log => {
  const options = {
    level,
    base: null,
    timestamp: millisecondClock(),
    formatters: { level: (label: string) => ({ level: label }) },
    serializers: { ...stdSerializers, err: errorSerializer },
  };
  if (destination) return pino(options, destination);
  if (process.stdout.isTTY) {
    try {
      return pino({ ...options, transport: { target: "pino-pretty", options: { ignore: "time" } } });
    } catch {
      // pino-pretty is a development dependency: without it the lines stay JSON.
    }
  }
  return pino(options, gatheringStdout());
};
