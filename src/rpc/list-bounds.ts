import { type DescField, type DescMessage, type Message, getOption } from "@bufbuild/protobuf";
import { field as fieldOption } from "../gen/buf/validate/validate_pb.ts";
import type { FieldViolation } from "./refusal.ts";

interface BoundedList {
  readonly name: string;
  readonly localName: string;
  readonly itemsMax: number;
}

const boundOf = (desc: DescMessage, field: DescField): BoundedList => {
  const { type } = getOption(field, fieldOption);
  const itemsMax = type.case === "repeated" ? Number(type.value.maxItems) : 0;
  if (itemsMax === 0) throw new Error(`${desc.typeName}.${field.name} needs the rule repeated.max_items`);
  return { name: field.name, localName: field.localName, itemsMax };
};

/**
 * A request's lists that are longer than their rule lets them be. protovalidate would look at each of their items too, of
 * which a message may have millions, and gather what is wrong with each.
 * @throws Error where a list has no rule on its length.
 */
export const longLists = (desc: DescMessage): ((request: Message) => readonly FieldViolation[]) => {
  const lists = desc.fields.filter(({ fieldKind }) => fieldKind === "list").map((field) => boundOf(desc, field));
  return (request) =>
    lists.flatMap(({ name, localName, itemsMax }) => {
      const { length } = (request as unknown as Readonly<Record<string, readonly unknown[]>>)[localName] ?? [];
      return length > itemsMax ? [{ field: name, description: `must contain no more than ${itemsMax} item(s)` }] : [];
    });
};
