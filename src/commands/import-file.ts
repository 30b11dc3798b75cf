import type { FileHandle } from "node:fs/promises";
import { type JsonValue, create, fromJson, toBinary, toJson } from "@bufbuild/protobuf";
import { pathToString } from "@bufbuild/protobuf/reflect";
import { createValidator } from "@bufbuild/protovalidate";
import { contentFault } from "../auth/import-rows.ts";
import {
  type ImportUsersRequest_User,
  ImportUsersRequest_UserSchema,
  ImportStatus,
  type ImportUsersResponse_Result,
  ImportUsersResponse_ResultSchema,
} from "../gen/auth/v1/auth_pb.ts";

/** A line of the file: a person, or what is wrong with it. */
interface Line {
  readonly number: number;
  readonly person: ImportUsersRequest_User | string;
}

export interface Batch {
  readonly lines: readonly Line[];
  /** Of the file, with its ends of lines. */
  readonly bytes: number;
}

/** What the report says of a line. */
export interface LineResult {
  readonly number: number;
  readonly result: ImportUsersResponse_Result;
  /** Why the line never left, beside `INVALID_REQUEST`. */
  readonly detail?: string;
}

const validator = createValidator();

// The server refuses a whole call for one broken field: what breaks a rule must not be sent with others.
const brokenRules = (person: ImportUsersRequest_User): string | undefined => {
  const { violations } = validator.validate(ImportUsersRequest_UserSchema, person);
  return violations?.map(({ field, message }) => `${pathToString(field)}: ${message}`).join("; ");
};

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** Undefined of bytes that are no UTF-8. Text of another encoding would be stored damaged, and no repeat would mend it. */
const textOf = (bytes: Uint8Array): string | undefined => {
  try {
    return utf8.decode(bytes);
  } catch {
    return undefined;
  }
};

const readPerson = (text: string | undefined): Line["person"] => {
  if (text === undefined) return "no UTF-8";
  let json: JsonValue;
  try {
    json = JSON.parse(text) as JsonValue;
  } catch {
    return "no JSON";
  }
  try {
    // Unknown fields are faults: a field that is misspelled would be lost without a word.
    const person = fromJson(ImportUsersRequest_UserSchema, json);
    // Of its content the server would say no more than that the line is refused.
    return brokenRules(person) ?? contentFault(person) ?? person;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
};

const LINE_FEED = 0x0a;
/** More than a person takes, however it is written. A file that is one line is not held as a whole. */
const LINE_MAX_BYTES = 1_048_576;

interface RawLine {
  /** Undefined where it is longer than any line may be. */
  readonly content: Buffer | undefined;
  readonly bytes: number;
}

/** A line ends at a line feed alone: JSON may have the other ends that Unicode knows within its strings (RFC 8259, 7). */
async function* linesOf(file: FileHandle): AsyncGenerator<RawLine> {
  let begun: Buffer[] = [];
  let bytes = 0;
  const add = (part: Buffer) => {
    bytes += part.length;
    if (bytes > LINE_MAX_BYTES) begun = [];
    else begun.push(part);
  };
  const end = (): RawLine => {
    const line = { content: bytes > LINE_MAX_BYTES ? undefined : Buffer.concat(begun), bytes };
    [begun, bytes] = [[], 0];
    return line;
  };
  // Whoever opened it still asks what has become of it, and closes it.
  for await (const chunk of file.createReadStream({ autoClose: false }) as AsyncIterable<Buffer>) {
    let start = 0;
    for (let feed = chunk.indexOf(LINE_FEED); feed !== -1; feed = chunk.indexOf(LINE_FEED, start)) {
      add(chunk.subarray(start, feed));
      yield end();
      start = feed + 1;
    }
    add(chunk.subarray(start));
  }
  if (bytes > 0) yield end();
}

// Of a message beside the people, and of each of them in it.
const MESSAGE_FRAME_BYTES = 64;
const PERSON_FRAME_BYTES = 6;

/** How much a batch may be. */
export interface BatchBounds {
  readonly people: number;
  /** Of the message that carries them. */
  readonly messageBytes: number;
}

/** The person of a line, none of an empty one, and what it takes of the room in a message. */
const readLine = (
  line: Uint8Array | undefined,
  room: number,
): { readonly person?: Line["person"]; readonly size: number } => {
  if (!line) return { person: `longer than ${LINE_MAX_BYTES} bytes: is there one object a line?`, size: 0 };
  const text = textOf(line);
  if (text?.trim() === "") return { size: 0 };
  const person = readPerson(text);
  if (typeof person === "string") return { person, size: 0 };
  const size = toBinary(ImportUsersRequest_UserSchema, person).length + PERSON_FRAME_BYTES;
  return size > room ? { person: "larger than MESSAGE_MAX_BYTES lets through", size: 0 } : { person, size };
};

/** Reads a file of one JSON object a line, and never more of it than is asked for; empty lines are passed over. */
export async function* readBatches(file: FileHandle, bounds: BatchBounds): AsyncGenerator<Batch> {
  const room = bounds.messageBytes - MESSAGE_FRAME_BYTES;
  let [lines, bytes, size]: [Line[], number, number] = [[], 0, 0];
  let number = 0;
  for await (const line of linesOf(file)) {
    number++;
    const { person, size: more } = readLine(line.content, room);
    if (lines.length === bounds.people || size + more > room) {
      yield { lines, bytes };
      [lines, bytes, size] = [[], 0, 0];
    }
    bytes += line.bytes + 1;
    size += more;
    if (person !== undefined) lines.push({ number, person });
  }
  if (lines.length > 0) yield { lines, bytes };
}

const isPerson = (person: Line["person"]): person is ImportUsersRequest_User => typeof person !== "string";

/** The people of a batch, as they are sent. */
export const peopleOf = ({ lines }: Batch): ImportUsersRequest_User[] =>
  lines.map(({ person }) => person).filter(isPerson);

/** The results of a batch, line by line: those of the server, and of the lines that were not sent. */
export const resultsOf = ({ lines }: Batch, answered: readonly ImportUsersResponse_Result[]): LineResult[] => {
  const results = answered.values();
  return lines.map(({ number, person }) => {
    if (!isPerson(person)) {
      const refused = { status: ImportStatus.REFUSED, reason: "INVALID_REQUEST" };
      return { number, result: create(ImportUsersResponse_ResultSchema, refused), detail: person };
    }
    const { value } = results.next();
    if (!value) throw new Error("the server answered fewer results than people");
    return { number, result: value };
  });
};

/** One line of the report. */
export const reportLine = ({ number, result, detail }: LineResult): string => {
  const said = toJson(ImportUsersResponse_ResultSchema, result, { useProtoFieldName: true }) as object;
  return `${JSON.stringify({ line: number, ...said, ...(detail !== undefined && { detail }) })}\n`;
};
