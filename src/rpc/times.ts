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

const isTime = ({ message }: DescField) =>
  message?.typeName === TimestampSchema.typeName || message?.typeName === DurationSchema.typeName;

/**
 * Timestamps and durations whose nanoseconds are out of their type's bounds, which protovalidate lets pass: a negative
 * overlap would get through its rules as `{seconds: 1, nanos: -2147483648}`.
 */
export const brokenTimes = (desc: DescMessage): ((request: Message) => FieldViolation[]) => {
  const fields = desc.fields.filter((field) => field.fieldKind === "message" && !field.oneof && isTime(field));
  return (request) =>
    fields.flatMap((field) => {
      const description = fault((request as unknown as Record<string, unknown>)[field.localName]);
      return description === undefined ? [] : [{ field: field.name, description }];
    });
};
