import {
  type DescField,
  type DescMessage,
  type DescOneof,
  type Message,
  ScalarType,
  create,
  getOption,
} from "@bufbuild/protobuf";
import { FieldMaskSchema, TimestampSchema } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import {
  type FieldRules,
  type StringRules,
  field as fieldOption,
  oneof as oneofOption,
} from "../../src/gen/buf/validate/validate_pb.ts";

/** Values that a field of this proto name may have, such as ids of things that exist; an enum's by their names. */
export type Known = Readonly<Record<string, readonly string[]>>;

type Rules = FieldRules["type"];
type Values = fc.Arbitrary<unknown>;

const INT32_MAX = 2 ** 31 - 1;
const INT64_MAX = 2n ** 63n - 1n;

const rulesOf = (field: DescField): Rules => getOption(field, fieldOption).type;

const isOptional = (field: DescField) => field.proto.proto3Optional || field.fieldKind === "message";

const strings = new Map<string, fc.Arbitrary<string>>();

/** Made once for all fields with these rules: fast-check holds its dangerous strings against each that is made, for some 30 ms. */
const madeOnce = (key: string, make: () => fc.Arbitrary<string>): fc.Arbitrary<string> => {
  const made = strings.get(key) ?? make();
  strings.set(key, made);
  return made;
};

const validString = ({ wellKnown, pattern, minLen, maxLen }: StringRules): fc.Arbitrary<string> => {
  if (wellKnown.case === "uuid") return fc.uuid();
  const [min, max] = [Number(minLen), Number(maxLen)];
  return madeOnce(`${min} ${max} ${pattern}`, () => {
    if (pattern)
      return fc.stringMatching(new RegExp(pattern, "u"), { maxLength: max }).filter(({ length }) => length <= max);
    return fc
      .string({ unit: "grapheme", minLength: min, maxLength: Math.min(max, 40) })
      .filter((text) => !text.includes("\0") && Array.from(text).length <= max);
  });
};

const noValues = (scalar: ScalarType | undefined): never => {
  throw new Error(`no values are made for a ${scalar === undefined ? "list" : ScalarType[scalar]} with such rules`);
};

/** @param scalar undefined of what is none, such as an enum in a list. */
const validScalar = (scalar: ScalarType | undefined, rules: Rules): Values => {
  if (rules.case === "string") return validString(rules.value);
  if (rules.case === "int32") return fc.integer({ min: 0, max: INT32_MAX });
  return scalar === ScalarType.BOOL ? fc.boolean() : noValues(scalar);
};

const validTime = ({ message }: DescField, rules: Rules): Values => {
  const nanos = fc.integer({ min: 0, max: 999_999_999 });
  if (message?.typeName === TimestampSchema.typeName) {
    return fc.record({ seconds: fc.bigInt(-62_135_596_800n, 253_402_300_799n), nanos });
  }
  const max = rules.case === "duration" ? (rules.value.lessThan.value?.seconds ?? 1_000n) : 1_000n;
  return fc.record({ seconds: fc.bigInt(1n, max - 1n), nanos });
};

const siblings = ({ parent }: DescField) =>
  parent.fields.map(({ name }) => name).filter((name) => !/_id$|_mask$/.test(name));

/** What the rules of the field let through. */
const valid = (field: DescField, known: Known): Values => {
  const rules = rulesOf(field);
  if (field.name === "page_token") return fc.constant("");
  const values = known[field.name];
  if (values && field.fieldKind === "list") return fc.subarray([...values], { minLength: 1 });
  if (values && field.fieldKind === "enum") {
    return fc.constantFrom(
      ...field.enum.values.filter(({ name }) => values.includes(name)).map(({ number }) => number),
    );
  }
  if (values) return fc.constantFrom(...values);
  switch (field.fieldKind) {
    case "scalar":
      return validScalar(field.scalar, rules);
    case "enum":
      return fc.constantFrom(...field.enum.values.map(({ number }) => number).filter((number) => number !== 0));
    case "list": {
      const { items, minItems } = rules.case === "repeated" ? rules.value : { items: undefined, minItems: 0n };
      const item =
        field.listKind === "message"
          ? validInit(field.message, known)
          : validScalar(field.scalar, items?.type ?? { case: undefined });
      return fc.uniqueArray(item, { minLength: Number(minItems), maxLength: 3 });
    }
    case "message":
      if (field.message.typeName === FieldMaskSchema.typeName)
        return fc.record({ paths: fc.subarray(siblings(field)) });
      if (/^google\.protobuf\.(Timestamp|Duration)$/.test(field.message.typeName)) return validTime(field, rules);
      return validInit(field.message, known);
    case "map":
      return fc.constant({});
  }
};

const oneofValue = (oneof: DescOneof, of: (field: DescField) => Values): Values =>
  fc.oneof(...oneof.fields.map((field) => of(field).map((value) => ({ case: field.localName, value }))));

const initOf = (
  desc: DescMessage,
  of: (field: DescField) => Values,
  optional: (member: DescField | DescOneof) => boolean,
) => {
  const members = desc.members.map(
    (member) => [member.localName, member.kind === "oneof" ? oneofValue(member, of) : of(member)] as const,
  );
  const required = desc.members.filter((member) => !optional(member)).map(({ localName }) => localName);
  return fc.record(Object.fromEntries(members), { requiredKeys: required });
};

const validInit = (desc: DescMessage, known: Known) =>
  initOf(
    desc,
    (field) => valid(field, known),
    (member) => (member.kind === "oneof" ? !getOption(member, oneofOption).required : isOptional(member)),
  );

const extremes = fc.constantFrom(
  INT64_MAX,
  -INT64_MAX - 1n,
  0n,
  -1n,
  253_402_300_799n,
  253_402_300_800n,
  -62_135_596_801n,
);

const SURROGATES = { first: 0xd800, count: 0x800 };

// As fast-check's own unit "binary", which for its dangerous strings makes a map of all Unicode, for more than a second.
const codePoint = fc.integer({ min: 0, max: 0x10ffff - SURROGATES.count }).map(
  (n) => String.fromCodePoint(n < SURROGATES.first ? n : n + SURROGATES.count),
  (text) => {
    const point = String(text).codePointAt(0) ?? 0;
    if (text !== String.fromCodePoint(point) || !text.isWellFormed()) throw new Error("not one code point");
    return point < SURROGATES.first ? point : point - SURROGATES.count;
  },
);
const anyString = fc.string({ unit: codePoint, maxLength: 300 });

const wildString = (known: Known): fc.Arbitrary<string> =>
  fc.oneof(
    anyString,
    fc.constantFrom("", "\0", "a\0b", "%", "'", "\\", "\u202e", "😀".repeat(200), "x".repeat(5_000)),
    fc.constantFrom(...Object.values(known).flat(), "*").map((text) => text.toUpperCase()),
    fc.jsonValue().map((value) => Buffer.from(JSON.stringify(value)).toString("base64url")),
  );

const wildScalar = (scalar: ScalarType | undefined, rules: Rules, known: Known): Values => {
  if (rules.case === "string") return wildString(known);
  if (rules.case === "int32") return fc.oneof(fc.integer(), fc.constantFrom(-1, 0, 1_001, INT32_MAX, -INT32_MAX - 1));
  return scalar === ScalarType.BOOL ? fc.boolean() : noValues(scalar);
};

/** What the wire can carry, whatever the rules say. */
const wild = (field: DescField, known: Known): Values => {
  const rules = rulesOf(field);
  switch (field.fieldKind) {
    case "scalar":
      return wildScalar(field.scalar, rules, known);
    case "enum":
      return fc.integer();
    case "list":
      if (field.listKind === "message") return fc.array(wildInit(field.message, known), { maxLength: 5 });
      return fc.array(
        wildScalar(
          field.scalar,
          rules.case === "repeated" ? (rules.value.items?.type ?? { case: undefined }) : { case: undefined },
          known,
        ),
        {
          maxLength: 120,
        },
      );
    case "message":
      if (field.message.typeName === FieldMaskSchema.typeName) {
        return fc.record({
          paths: fc.array(fc.oneof(fc.constantFrom("*", ...siblings(field)), fc.string()), { maxLength: 5 }),
        });
      }
      if (/^google\.protobuf\.(Timestamp|Duration)$/.test(field.message.typeName)) {
        return fc.record({ seconds: fc.oneof(extremes, fc.bigInt(-INT64_MAX, INT64_MAX)), nanos: fc.integer() });
      }
      return wildInit(field.message, known);
    case "map":
      return fc.constant({});
  }
};

const wildInit = (desc: DescMessage, known: Known): fc.Arbitrary<Record<string, unknown>> =>
  initOf(
    desc,
    (field) => fc.oneof({ weight: 3, arbitrary: valid(field, known) }, { weight: 1, arbitrary: wild(field, known) }),
    () => true,
  );

const messages = (desc: DescMessage, init: fc.Arbitrary<Record<string, unknown>>): fc.Arbitrary<Message> =>
  init.map((values) => create(desc, values as never));

/** Requests that mostly keep their rules and now and then break one. */
export const wildMessage = (desc: DescMessage, known: Known = {}): fc.Arbitrary<Message> =>
  messages(desc, wildInit(desc, known));

/**
 * Valid requests with nothing in them that may be left out, one for each way to fill the message's oneofs.
 *
 * @param known values by proto name; a field that may be left out is set where they name it.
 */
export const sampleMessages = (desc: DescMessage, known: Known = {}): readonly Message[] => {
  const plain = desc.fields.filter((field) => !field.oneof && (!isOptional(field) || known[field.name]));
  const base = Object.fromEntries(plain.map((field) => [field.localName, sampleOf(valid(field, known))]));
  const choices = desc.oneofs.flatMap((oneof) =>
    oneof.fields.map((field) => ({
      [oneof.localName]: { case: field.localName, value: sampleOf(valid(field, known)) },
    })),
  );
  return (choices.length > 0 ? choices : [{}]).map((choice) => create(desc, { ...base, ...choice }));
};

const sampleOf = <T>(arbitrary: fc.Arbitrary<T>): T => fc.sample(arbitrary, { numRuns: 1, seed: 7 })[0]!;
