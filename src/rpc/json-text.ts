import type { DescEnum, DescField, DescMessage, JsonValue } from "@bufbuild/protobuf";
import { TIME_FORM, below, jsonFault } from "./json-faults.ts";
import { type FieldViolation, invalid, unreadable } from "./refusal.ts";

/** Answers with the first value that protobuf-es reads as another than it says, or as none. */
type Search = (json: unknown) => FieldViolation | undefined;

const searchName = ({ values }: DescEnum): Search => {
  const names = new Set(values.flatMap(({ name, jsonName }) => [name, jsonName]));
  const fault = { field: "", description: "value must be one of the defined enum values" };
  return (json) => (typeof json === "string" && !names.has(json) ? fault : undefined);
};

const DATE_AND_HOUR = /^(\d{4})-(\d{2})-(\d{2})T(\d{2})/;

// To JavaScript 30 February is a day in March, and the hour 24 is the next day's first: RFC 3339 has neither.
const searchTime: Search = (json) => {
  const [, year, month, day, hour] = (typeof json === "string" && DATE_AND_HOUR.exec(json)) || [];
  if (year === undefined) return undefined;
  const lastDay = new Date(Date.UTC(Number(year), Number(month), 0)).getUTCDate();
  return Number(day) > lastDay || hour === "24" ? { field: "", description: TIME_FORM } : undefined;
};

const searchItems =
  (searchItem: Search): Search =>
  (json) => {
    if (!Array.isArray(json)) return undefined;
    for (let index = 0; index < json.length; index++) {
      const fault = searchItem(json[index]);
      if (fault) return below(`[${index}]`, fault);
    }
    return undefined;
  };

const searchValue = ({ enum: desc, message }: DescField): Search | undefined => {
  if (desc) return searchName(desc);
  return message?.typeName === "google.protobuf.Timestamp" ? searchTime : message && searchMessage(message);
};

const searchField = (field: DescField): Search | undefined => {
  const search = searchValue(field);
  return search && field.fieldKind === "list" ? searchItems(search) : search;
};

/** Undefined for a message that has no enums and no times: nothing of it needs a look. */
const searchMessage = ({ fields }: DescMessage): Search | undefined => {
  const searches = fields.flatMap((field) => {
    const search = searchField(field);
    const keys = new Set([field.name, field.jsonName]);
    return search ? [...keys].map((key) => ({ key, name: field.name, search })) : [];
  });
  if (searches.length === 0) return undefined;
  return (json) => {
    if (typeof json !== "object" || json === null) return undefined;
    for (const { key, name, search } of searches) {
      const fault = search((json as Readonly<Record<string, unknown>>)[key]);
      if (fault) return below(name, fault);
    }
    return undefined;
  };
};

const parsed = (text: string): JsonValue => {
  try {
    return JSON.parse(text) as JsonValue;
  } catch {
    // The parser's own words quote the text.
    throw unreadable(undefined, "the message is no JSON");
  }
};

/** In a longer text it is not looked for what cannot be read: that reads it twice. */
const LOCATED_BYTES = 32_768;

/**
 * Reads the JSON of a message. To ignore unknown fields is also to ignore enum values of unknown names, by protobuf's rule,
 * and so a misspelled one would be a field that nobody set: such a name is refused, as an unknown number is. So is a time
 * that no calendar has.
 */
export class JsonText extends TextDecoder {
  readonly #desc: DescMessage;
  readonly #search: Search | undefined;

  constructor(desc: DescMessage) {
    super("utf-8", { fatal: true });
    this.#desc = desc;
    this.#search = searchMessage(desc);
  }

  /** @throws INVALID_REQUEST, with the field that has an unknown name, no time of a calendar, or no value of its type. */
  override decode(bytes: Uint8Array): string {
    const text = super.decode(bytes);
    const json = parsed(text);
    const fault = this.#search?.(json) ?? (bytes.length > LOCATED_BYTES ? undefined : jsonFault(this.#desc, json));
    if (fault) throw invalid(fault);
    return text;
  }
}
