import { createHash } from "node:crypto";
import { type DescMessage, type MessageShape, clearField, clone, toBinary } from "@bufbuild/protobuf";
import { z } from "zod";
import { invalid } from "./refusal.ts";

const DEFAULT_SIZE = 50;
const MAX_SIZE = 1_000;

type PageRequest<Desc extends DescMessage> = MessageShape<Desc> & { pageSize: number; pageToken: string };

/** One page of a list: how many rows it may have, and the key after which it starts. */
export interface Page<Key> {
  readonly size: number;
  /** The last row's key of the page before, or undefined on the first page. */
  readonly after: Key | undefined;
  /** The token of the page that starts after `key`. */
  tokenAfter(key: Key): string;
}

const invalidToken = () =>
  invalid({ field: "page_token", description: "is not a token of this list with these filters" });

/**
 * What a token is bound to: the message's type and everything in it but the page itself. An id is the same in either case,
 * and what is off or empty is as if it were not set.
 */
const filtersOf = <Desc extends DescMessage>(schema: Desc, request: PageRequest<Desc>): string => {
  const filters = clone(schema, request) as PageRequest<Desc>;
  for (const field of schema.fields) {
    const { localName: name } = field;
    const value: unknown = filters[name as keyof typeof filters];
    if (name.endsWith("Id") && typeof value === "string") Object.assign(filters, { [name]: value.toLowerCase() });
    if (value === false || value === "") clearField(filters, field);
  }
  filters.pageSize = 0;
  filters.pageToken = "";
  return createHash("sha256")
    .update(schema.typeName)
    .update(toBinary(schema, filters))
    .digest("base64url")
    .slice(0, 16);
};

/**
 * Reads the page that a list request asks for (AIP-158): keyset pages, so that page N costs what page 1 costs.
 *
 * A token holds the last key and a digest of the filters. It is no secret and grants nothing: every query still names
 * its tenant, and a forged key only starts the list elsewhere.
 * @param key parses the key's parts, in the order of the list.
 * @throws INVALID_REQUEST for a token that is malformed or of another list.
 */
export const readPage = <Desc extends DescMessage, Key>(
  schema: Desc,
  request: PageRequest<Desc>,
  key: z.ZodType<Key>,
): Page<Key> => {
  const filters = filtersOf(schema, request);
  const size = request.pageSize === 0 ? DEFAULT_SIZE : Math.min(request.pageSize, MAX_SIZE);
  const tokenAfter = (last: Key) => Buffer.from(JSON.stringify([filters, last])).toString("base64url");
  if (request.pageToken === "") return { size, after: undefined, tokenAfter };
  const token = z.tuple([z.literal(filters), key]).safeParse(decode(request.pageToken));
  if (!token.success) throw invalidToken();
  return { size, after: token.data[1], tokenAfter };
};

const decode = (token: string): unknown => {
  try {
    return JSON.parse(Buffer.from(token, "base64url").toString());
  } catch {
    throw invalidToken();
  }
};

/** What rows weigh, where a page of the largest would be more than the 4 MiB that gRPC clients take. */
export interface Weight<Row> {
  readonly of: (row: Row) => number;
  readonly max: number;
}

/** How many of the first rows weigh no more than they may together, and always the first. */
export const fitting = <Row>(rows: readonly Row[], { of, max }: Weight<Row>): number => {
  let total = 0;
  const beyond = rows.findIndex((row, index) => (total += of(row)) > max && index > 0);
  return beyond === -1 ? rows.length : beyond;
};

/**
 * Cuts the row that was asked for beyond the page: with it there is a next page, without it the list has ended.
 * Statements ask for `page.size + 1` rows.
 */
export const cutPage = <Row, Key>(
  page: Page<Key>,
  rows: readonly Row[],
  keyOf: (row: Row) => Key,
  weight?: Weight<Row>,
): { rows: readonly Row[]; nextPageToken: string } => {
  const size = weight ? Math.min(page.size, fitting(rows, weight)) : page.size;
  const last = rows[size - 1];
  if (rows.length <= size || last === undefined) return { rows, nextPageToken: "" };
  return { rows: rows.slice(0, size), nextPageToken: page.tokenAfter(keyOf(last)) };
};

/** Text as a part of a key: what the database can hold. */
export const keyText = z.string().refine((text) => !text.includes("\0"));

/** Microseconds since 1970 within the years 1 to 9999, as digits: JSON has no integers of that size. */
export const microseconds = z
  .string()
  // BigInt throws at what is no number: the bounds are looked at only where there is one.
  .regex(/^-?\d{1,18}$/, { abort: true })
  .refine((digits) => BigInt(digits) >= -62_135_596_800_000_000n && BigInt(digits) < 253_402_300_800_000_000n);
