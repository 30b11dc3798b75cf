import { type DescField, type DescMessage, getOption, ScalarType } from "@bufbuild/protobuf";
import { expect, test } from "vitest";
import { type FieldRules, field as fieldOption } from "../../src/gen/buf/validate/validate_pb.ts";
import { rpcs } from "../support/rpcs.ts";

/** The fields of a request and of the messages of ours within it. */
function fieldsOf(message: DescMessage): DescField[] {
  return message.fields.flatMap((field) =>
    field.message && !field.message.typeName.startsWith("google.protobuf.")
      ? [field, ...fieldsOf(field.message)]
      : [field],
  );
}

function unbounded(field: DescField): boolean {
  const rules = getOption(field, fieldOption);
  const { type } = rules;
  switch (field.fieldKind) {
    case "scalar":
      return isLoose(field.scalar, rules);
    case "enum":
      return type.case !== "enum" || !type.value.definedOnly;
    case "list":
      if (type.case !== "repeated" || type.value.maxItems === 0n) return true;
      return isLoose(field.scalar, type.value.items);
    case "map":
      return type.case !== "map" || type.value.maxPairs === 0n;
    case "message":
      return false;
  }
}

function isLoose(scalar: ScalarType | undefined, rules: FieldRules | undefined): boolean {
  if (scalar === undefined || scalar === ScalarType.BOOL) return false;
  return scalar === ScalarType.STRING ? looseString(rules) : rules?.type.case === undefined;
}

/** It has no maximum length, or U+0000 may get through. */
function looseString(rules: FieldRules | undefined): boolean {
  if (rules?.type.case !== "string") return true;
  const { maxLen, notContains, pattern, wellKnown } = rules.type.value;
  if (wellKnown.case === "uuid") return !wellKnown.value;
  const refusesNul = notContains === "\0" || (pattern !== "" && !new RegExp(pattern).test("\0"));
  return maxLen === 0n || !refusesNul;
}

test.each(rpcs)("$name bounds every field of its request", ({ method }) => {
  const loose = fieldsOf(method.input).filter(unbounded);
  expect(loose.map((field) => `${field.parent.name}.${field.name}`)).toEqual([]);
});
