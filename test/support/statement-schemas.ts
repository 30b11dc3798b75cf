import type { Interceptor } from "slonik";
import { z } from "zod";
import { type Accepted, type Kind, rowMismatches } from "../check/row-types.ts";

const only = (kind: Kind): Accepted => ({ kinds: new Set([kind]), nullable: false, optional: false });

const union = (members: readonly Accepted[]): Accepted => ({
  kinds: new Set(members.flatMap(({ kinds }) => [...kinds])),
  nullable: members.some(({ nullable }) => nullable),
  optional: members.some(({ optional }) => optional),
});

const arrayOf = ({ kinds }: Accepted): Accepted => ({
  kinds: new Set([...kinds].map((kind) => `${kind}[]`)),
  nullable: false,
  optional: false,
});

const literals = (values: Iterable<unknown>): Accepted =>
  union(Array.from(values, (value) => (value === null ? acceptedBy(z.null()) : only(typeof value))));

/** What a schema takes before its own transforms: the row as slonik hands it over. */
const acceptedBy = (schema: z.core.$ZodType): Accepted => {
  const { def } = schema._zod as z.core.$ZodTypes["_zod"];
  if ("coerce" in def && def.coerce) return { ...only("unknown"), nullable: true };
  switch (def.type) {
    case "string":
    case "number":
    case "boolean":
    case "bigint":
      return only(def.type);
    case "template_literal":
      return only("string");
    case "null":
      return { kinds: new Set(), nullable: true, optional: false };
    case "undefined":
    case "void":
      return { kinds: new Set(), nullable: false, optional: true };
    case "enum":
      return literals(Object.values(def.entries));
    case "literal":
      return literals(def.values);
    case "nullable":
      return { ...acceptedBy(def.innerType), nullable: true };
    case "optional":
    case "default":
    case "prefault":
      return { ...acceptedBy(def.innerType), optional: true };
    case "nonoptional":
    case "readonly":
    case "catch":
      return acceptedBy(def.innerType);
    case "pipe":
      return acceptedBy(def.in);
    case "lazy":
      return acceptedBy(def.getter());
    case "union":
      return union(def.options.map(acceptedBy));
    case "array":
      return arrayOf(acceptedBy(def.element));
    case "object":
    case "record":
    case "tuple":
      return only("object");
    case "any":
    case "unknown":
      return { ...only("unknown"), nullable: true };
    case "custom":
    case "intersection":
      // z.instanceof(Buffer) is how bytea is read, and only the compiler knows what it takes.
      return only("any");
    default:
      return only(def.type);
  }
};

/**
 * How a statement's row schema disagrees with the columns that PostgreSQL described for it, one sentence each.
 *
 * A schema that is no object, such as that of `sql.unsafe`, agrees with everything. Nullability is not described at run
 * time: there the row parser refuses a null, and the static check tells before.
 */
export const describeMismatch = (
  schema: z.core.$ZodType,
  fields: readonly { readonly name: string; readonly dataTypeId: number }[],
): string[] => {
  if (!(schema instanceof z.core.$ZodObject)) return [];
  const shape: Readonly<Record<string, z.core.$ZodType>> = schema._zod.def.shape;
  const row = new Map(Object.entries(shape).map(([name, column]) => [name, acceptedBy(column)]));
  const columns = fields.map(({ name, dataTypeId }) => ({ name, typeOid: dataTypeId, nullability: "maybe" as const }));
  return rowMismatches(columns, row).map(({ column, message }) => `column "${column}" ${message}`);
};

/** Fails each statement whose row schema disagrees with what PostgreSQL described, rows or none. */
export const statementSchemas: Interceptor = {
  name: "statement-schemas",
  afterQueryExecution: ({ resultParser }, { sql }, { fields }) => {
    const mismatches = resultParser instanceof z.core.$ZodType ? describeMismatch(resultParser, fields) : [];
    if (mismatches.length > 0) throw new Error(`${mismatches.join("; ")}\n${sql}`);
    return null;
  },
};
