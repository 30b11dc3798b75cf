import { type DescField, type DescMessage, type Message, isMessage } from "@bufbuild/protobuf";
import { DurationSchema, TimestampSchema } from "@bufbuild/protobuf/wkt";
import type { FieldViolation } from "./refusal.ts";

const NANOS_MAX = 999_999_999;

const fault = (value: unknown): string | undefined => {
  if (isMessage(value, TimestampSchema)) {
    return value.nanos >= 0 && value.nanos <= NANOS_MAX ? undefined : "nanos must be from 0 to 999,999,999";
  }
  if (!isMessage(value, DurationSchema)) return undefined;
  if (Math.abs(value.nanos) > NANOS_MAX) return "nanos must be within ±999,999,999";
  const opposed = value.seconds !== 0n && value.nanos !== 0 && value.seconds > 0n !== value.nanos > 0;
  return opposed ? "seconds and nanos must have the same sign" : undefined;
};

const TIMES: ReadonlySet<string> = new Set([TimestampSchema.typeName, DurationSchema.typeName]);

/** Answers what is broken in a value that stands at `path`; a request stands at the empty one. */
type Look = (value: unknown, path: string) => readonly FieldViolation[];

const lookAtTime: Look = (value, path) => {
  const description = fault(value);
  return description === undefined ? [] : [{ field: path, description }];
};

const lookAtField = (field: DescField): Look | undefined => {
  const look = field.message && field.fieldKind !== "map" ? lookOf(field.message) : undefined;
  if (!look) return undefined;
  const { name, localName, oneof } = field;
  return (message, path) => {
    const members = message as Readonly<Record<string, unknown>>;
    const chosen = oneof && (members[oneof.localName] as { readonly case?: string; readonly value?: unknown });
    const value = chosen ? chosen.case === localName && chosen.value : members[localName];
    const at = path === "" ? name : `${path}.${name}`;
    if (Array.isArray(value)) return value.flatMap((item, index) => look(item, `${at}[${index}]`));
    return value ? look(value, at) : [];
  };
};

/** Undefined where nothing in such a message is a time. */
const lookOf = (desc: DescMessage): Look | undefined => {
  if (TIMES.has(desc.typeName)) return lookAtTime;
  // Of Google's own some hold themselves, and none a time.
  if (desc.typeName.startsWith("google.protobuf.")) return undefined;
  const looks = desc.fields.flatMap((field) => lookAtField(field) ?? []);
  return looks.length === 0 ? undefined : (message, path) => looks.flatMap((look) => look(message, path));
};

/**
 * Timestamps and durations whose nanoseconds are out of their type's bounds, which protovalidate lets pass: a negative
 * overlap would get through its rules as `{seconds: 1, nanos: -2147483648}`.
 */
export const brokenTimes = (desc: DescMessage): ((request: Message) => readonly FieldViolation[]) => {
  const look = lookOf(desc);
  return (request) => look?.(request, "") ?? [];
};
