import type { DescEnum, DescExtension, DescField, DescMessage } from "@bufbuild/protobuf";
import { file_buf_validate_validate as upstream } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { expect, test } from "vitest";
import { file_buf_validate_validate as ours } from "../../src/gen/buf/validate/validate_pb.ts";

// The runtime reads our options by upstream's numbers: one that differs would be a rule that silently never fires.

const wire = (field: DescField | DescExtension) => ({
  number: field.number,
  jsonName: field.jsonName,
  kind: field.fieldKind,
  type: field.proto.type,
  label: field.proto.label,
  of: field.message?.typeName ?? field.enum?.typeName,
  oneof: field.kind === "field" ? field.oneof?.name : undefined,
  presence: field.presence,
});

const messageShape = (message: DescMessage) =>
  Object.fromEntries(message.fields.map((field) => [field.name, wire(field)]));

const enumShape = (type: DescEnum) => Object.fromEntries(type.values.map((value) => [value.name, value.number]));

test("the file has upstream's name, package and syntax", () => {
  expect([ours.name, ours.proto.package, ours.edition]).toEqual([
    upstream.name,
    upstream.proto.package,
    upstream.edition,
  ]);
});

test.each(ours.messages)("$name has fields of upstream's alone, alike in name, number and type", (message) => {
  const theirs = upstream.messages.find((candidate) => candidate.typeName === message.typeName);
  expect(theirs, message.typeName).toBeDefined();
  expect(messageShape(theirs!)).toMatchObject(messageShape(message));
  expect([...message.nestedMessages, ...message.nestedEnums, ...message.nestedExtensions]).toEqual([]);
});

test.each(ours.enums)("$name has every value of upstream's", (type) => {
  const theirs = upstream.enums.find((candidate) => candidate.typeName === type.typeName);
  expect(theirs && enumShape(theirs)).toEqual(enumShape(type));
});

test.each(ours.extensions)("the option $name extends what upstream's does, by its number", (option) => {
  const theirs = upstream.extensions.find((candidate) => candidate.typeName === option.typeName);
  expect(theirs?.extendee.typeName).toBe(option.extendee.typeName);
  expect(theirs && wire(theirs)).toEqual(wire(option));
});
