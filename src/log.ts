import { write, writeSync } from "node:fs";
import type { DatabaseError } from "pg";
import { type DestinationStream, type Logger, pino } from "pino";
import { sqlStateOf } from "./db/sql-state.ts";

export type Log = Logger;

// PostgreSQL quotes the offending value in messages of these classes (data exception, integrity violation, syntax).
const QUOTES_VALUES = /^(22|23|42)/;

const frames = (stack: string | undefined) => stack?.split("\n").filter((line) => /^\s+at /.test(line));

/** Never `detail`, `values`, `row` or `where`: database errors carry what callers sent. */
const errorSerializer = (error: unknown): unknown => {
  if (!(error instanceof Error)) return { type: typeof error };
  const { code, constraint, table, column } = error as Error & Partial<DatabaseError>;
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
/** After how long a full pipe is tried again, in milliseconds: its reader may have emptied it at once, and would wait. */
const AGAIN_MS = 5;
/** How many characters may wait where nobody reads. More are dropped: a log must not end what it tells of. */
const WAITING_MAX = 16_000_000;
const STDOUT = 1;
const NEWLINE = 0x0a;

/** How many lines begin in these bytes or before them: a newline in front only ends one that is written. */
const linesOf = (bytes: Buffer) =>
  bytes.reduce((lines, byte) => (byte === NEWLINE ? lines + 1 : lines), bytes[0] === NEWLINE ? -1 : 0);

const noticeOf = (lines: number) =>
  `${JSON.stringify({ level: "warn", time: new Date(), lines, msg: "log lines were lost, for want of room or a reader" })}\n`;

/**
 * Stdout for lines that are gathered before they are written, since one write a call is a third of a call's cost. They are
 * gathered here, as one text: sonic-boom counts the bytes of all that it has gathered anew with each line, or wants
 * each as a Buffer, and either costs as much again as making the line. Nor does it outlive a disk that is full: it
 * ends the process, and at its end tries to write for ever.
 */
const gatheringStdout = () => {
  let gathered = "";
  let writing: Buffer | undefined;
  // Lines lost that no notice has told of, and how many of them the one under way tells.
  let lost = 0;
  let told = 0;
  // The last write ended within a line, which the next must not go on with.
  let cut = false;
  const idle: (() => void)[] = [];

  const isWriting = () => writing !== undefined;
  const settle = (unwritten: number) => {
    writing = undefined;
    if (unwritten === 0) lost -= told;
    // Among them is the notice, where there was one.
    else lost += told > 0 ? unwritten - 1 : unwritten;
    if (gathered.length >= GATHER.characters || idle.length > 0) pass();
    if (!isWriting()) for (const done of idle.splice(0)) done();
  };
  const send = (bytes: Buffer) => {
    writing = bytes;
    write(STDOUT, bytes, (error, written) => {
      if (error?.code === "EAGAIN") setTimeout(send, AGAIN_MS, bytes);
      // What cannot be written is lost, and the next is tried anew: the disk may have room again.
      else if (error) settle(linesOf(bytes));
      else {
        cut = bytes[written - 1] !== NEWLINE;
        if (written === bytes.length) settle(0);
        else send(bytes.subarray(written));
      }
    });
  };
  const onItsOwnLine = (lines: string) => (cut ? `\n${lines}` : lines);
  const pass = () => {
    if (writing || gathered === "") return;
    told = lost;
    const bytes = Buffer.from(onItsOwnLine(told > 0 ? gathered + noticeOf(told) : gathered));
    gathered = "";
    send(bytes);
  };
  setInterval(pass, GATHER.ms).unref();
  process.on("exit", () => {
    // A write under way may be one that never ends.
    if (writing || gathered === "") return;
    try {
      writeSync(STDOUT, onItsOwnLine(gathered));
    } catch {
      // As above.
    }
  });
  return {
    write(line: string) {
      if (gathered.length < WAITING_MAX) gathered += line;
      else lost++;
      if (gathered.length >= GATHER.characters) pass();
    },
    /** Waits for what was gathered by now, whatever becomes of it. */
    flush(done: () => void) {
      pass();
      if (!writing) return done();
      idle.push(done);
    },
  };
};

let stdout: ReturnType<typeof gatheringStdout> | undefined;

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
    serializers: { err: errorSerializer },
  };
  if (destination) return pino(options, destination);
  if (process.stdout.isTTY) {
    try {
      return pino({ ...options, transport: { target: "pino-pretty", options: { ignore: "time" } } });
    } catch {
      // pino-pretty is a development dependency: without it the lines stay JSON.
    }
  }
  return pino(options, (stdout ??= gatheringStdout()));
};
