import type { FileHandle } from "node:fs/promises";
import { type JsonValue, create, fromJson, toJson } from "@bufbuild/protobuf";
import { pathToString } from "@bufbuild/protobuf/reflect";
import { createValidator } from "@bufbuild/protovalidate";
import {
  type ImportUsersRequest_User,
  ImportUsersRequest_UserSchema,
  ImportStatus,
  type ImportUsersResponse_Result,
  ImportUsersResponse_ResultSchema,
} from "../gen/auth/v1/auth_pb.ts";

/** A line of the file: a person, or what is wrong with it. */
export interface Line {
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

const readPerson = (text: string): Line["person"] => {
  let json: JsonValue;
  try {
    json = JSON.parse(text) as JsonValue;
  } catch {
    return "no JSON";
  }
  try {
    // Unknown fields are faults: a field that is misspelled would be lost without a word.
    const person = fromJson(ImportUsersRequest_UserSchema, json);
    return brokenRules(person) ?? person;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
};

/** Reads a file of one JSON object a line, and never more of it than is asked for; empty lines are passed over. */
export async function* readBatches(file: FileHandle, size: number): AsyncGenerator<Batch> {
  let lines: Line[] = [];
  let bytes = 0;
  let number = 0;
  for await (const text of file.readLines()) {
    number++;
    bytes += Buffer.byteLength(text) + 1;
    if (text.trim() !== "") lines.push({ number, person: readPerson(text) });
    if (lines.length < size) continue;
    yield { lines, bytes };
    lines = [];
    bytes = 0;
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
