import { type DescField, type DescMessage, type JsonValue, ScalarType, fromJson } from "@bufbuild/protobuf";
import type { FieldViolation } from "./refusal.ts";

/** What a time must be in JSON. */
export const TIME_FORM = 'must be an RFC 3339 time, such as "2026-01-31T12:00:00Z"';
const WELL_KNOWN: Readonly<Record<string, string>> = {
  "google.protobuf.Timestamp": TIME_FORM,
  "google.protobuf.Duration": 'must be seconds and an s, such as "1.5s"',
  "google.protobuf.FieldMask":
    'must be names of fields in lowerCamelCase with commas between them, such as "label,displayName"',
};
const SCALARS: Partial<Record<ScalarType, string>> = {
  [ScalarType.STRING]: "must be a string",
  [ScalarType.BOOL]: "must be true or false",
};

/** What is wrong within a field, by the path that leads through it. */
export const below = (name: string, { field: path, description }: FieldViolation): FieldViolation => ({
  field: path === "" || path.startsWith("[") ? name + path : `${name}.${path}`,
  description,
});

const isObject = (json: unknown): json is Readonly<Record<string, JsonValue>> =>
  typeof json === "object" && json !== null && !Array.isArray(json);

const canBeRead = (desc: DescMessage, json: JsonValue): boolean => {
  try {
    fromJson(desc, json, { ignoreUnknownFields: true });
    return true;
  } catch {
    return false;
  }
};

const expected = ({ message, scalar }: DescField): string => {
  if (message) return WELL_KNOWN[message.typeName] ?? "must be an object";
  return (scalar && SCALARS[scalar]) ?? "must be a whole number";
};

const within = (name: string, field: DescField, json: JsonValue): FieldViolation => {
  const inner = field.message && !WELL_KNOWN[field.message.typeName] ? jsonFault(field.message, json) : undefined;
  return below(name, inner ?? { field: "", description: expected(field) });
};

/** What is wrong with a field's value, which cannot be read. */
const fieldFault = (desc: DescMessage, field: DescField, key: string, json: JsonValue): FieldViolation => {
  if (field.fieldKind !== "list") return within(field.name, field, json);
  if (!Array.isArray(json)) return { field: field.name, description: "must be a list" };
  const index = json.findIndex((item) => !canBeRead(desc, { [key]: [item] }));
  return within(`${field.name}[${index}]`, field, json[index] as JsonValue);
};

/**
 * The first field that keeps the JSON of a message from being read, by reading each by itself; undefined where none does.
 * protobuf-es names a field by its type's full name, and none at all where the type has a form of its own, as times have.
 */
export const jsonFault = (desc: DescMessage, json: JsonValue): FieldViolation | undefined => {
  if (!isObject(json)) return undefined;
  for (const field of desc.fields) {
    for (const key of new Set([field.name, field.jsonName])) {
      const value = json[key];
      if (value !== undefined && !canBeRead(desc, { [key]: value })) return fieldFault(desc, field, key, value);
    }
  }
  return undefined;
};
