import type { DescEnum, DescField, DescMessage, JsonValue } from "@bufbuild/protobuf";
import { joinedPath, jsonFault } from "./json-faults.ts";
import { invalid, unreadable } from "./refusal.ts";

/** Answers with the path of an enum value that has an unknown name, where JSON has one. */
type Search = (json: unknown) => string | undefined;

const searchName = ({ values }: DescEnum): Search => {
  const names = new Set(values.flatMap(({ name, jsonName }) => [name, jsonName]));
  return (json) => (typeof json === "string" && !names.has(json) ? "" : undefined);
};

const searchItems =
  (searchItem: Search): Search =>
  (json) => {
    if (!Array.isArray(json)) return undefined;
    for (let index = 0; index < json.length; index++) {
      const path = searchItem(json[index]);
      if (path !== undefined) return joinedPath(`[${index}]`, path);
    }
    return undefined;
  };

const searchField = ({ fieldKind, enum: desc, message }: DescField): Search | undefined => {
  const search = desc ? searchName(desc) : message && searchMessage(message);
  return search && fieldKind === "list" ? searchItems(search) : search;
};

/** Undefined for a message that has no enums: nothing of it needs a look. */
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
      const path = search((json as Readonly<Record<string, unknown>>)[key]);
      if (path !== undefined) return joinedPath(name, path);
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
 * and so a misspelled one would be a field that nobody set: such a name is refused, as an unknown number is.
 */
export class JsonText extends TextDecoder {
  readonly #desc: DescMessage;
  readonly #search: Search | undefined;

  constructor(desc: DescMessage) {
    super("utf-8", { fatal: true });
    this.#desc = desc;
    this.#search = searchMessage(desc);
  }

  /** @throws INVALID_REQUEST, with the field that has an unknown name, or another value than one of its type. */
  override decode(bytes: Uint8Array): string {
    const text = super.decode(bytes);
    const json = parsed(text);
    const field = this.#search?.(json);
    if (field !== undefined) throw invalid({ field, description: "value must be one of the defined enum values" });
    const fault = bytes.length > LOCATED_BYTES ? undefined : jsonFault(this.#desc, json);
    if (fault) throw invalid(fault);
    return text;
  }
}
