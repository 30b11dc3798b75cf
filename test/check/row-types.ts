/** What slonik's type parsers make of a column: `string`, `number`, …, `string[]`; `json` is whatever was stored. */
export type Kind = string;

/** What a row schema takes for one column. Kind `unknown` takes everything and so checks nothing; `any` is not known. */
export interface Accepted {
  readonly kinds: ReadonlySet<Kind>;
  readonly nullable: boolean;
  readonly optional: boolean;
}

/** `maybe` is an expression whose nullability nobody can tell; the schema decides. */
export type Nullability = "never" | "maybe" | "null";

export interface Column {
  readonly name: string;
  readonly typeOid: number;
  readonly nullability: Nullability;
}

export interface Mismatch {
  readonly column: string;
  readonly message: string;
}

// By OID, since those of built-in types never change and neither slonik's fields nor a description carry names.
// Read off @slonik/pg-driver: its preset comes before pg-types; what neither parses (uuid, text, enums) stays a string.
const scalars: Readonly<Record<Kind, readonly (readonly [oid: number, arrayOid: number])[]>> = {
  boolean: [[16, 1000]],
  buffer: [[17, 1001]],
  bigint: [[20, 1016]],
  number: [
    [21, 1005], // int2
    [23, 1007], // int4
    [26, 1028], // oid
    [700, 1021], // float4
    [701, 1022], // float8
    [1700, 1231], // numeric
    [1114, 1115], // timestamp
    [1184, 1185], // timestamptz
    [1186, 1187], // interval, in seconds
  ],
  json: [
    [114, 199],
    [3802, 3807],
  ],
  string: [
    [18, 1002], // "char", whose array no parser knows
    [19, 1003], // name, likewise
    [25, 1009],
    [1042, 1014],
    [1043, 1015],
    [1082, 1182], // date
    [2950, 2951], // uuid
    [869, 1041], // inet
    [650, 651], // cidr
    [1083, 1183], // time
  ],
};
const unparsedArrays = new Set([1002, 1003]);

const kindsByOid = new Map<number, Kind>(
  Object.entries(scalars).flatMap(([kind, pairs]) =>
    pairs.flatMap(([oid, arrayOid]): [number, Kind][] => [
      [oid, kind],
      [arrayOid, unparsedArrays.has(arrayOid) ? "string" : `${kind}[]`],
    ]),
  ),
);

const kindOf = (typeOid: number): Kind => kindsByOid.get(typeOid) ?? "string";

/** Whether a schema that takes `accepted` can read what slonik makes of `kind`. */
const takes = (accepted: Kind, kind: Kind): boolean =>
  accepted === kind || accepted === "any" || (kind === "json[]" && accepted.endsWith("[]"));

const columnMismatch = ({ typeOid, nullability }: Column, { kinds, nullable, optional }: Accepted): string[] => {
  const kind = kindOf(typeOid);
  const messages: string[] = [];
  if (kind !== "json") {
    const wrong = [...kinds].filter((accepted) => !takes(accepted, kind));
    if (wrong.length > 0) messages.push(`is ${kind} in PostgreSQL, ${wrong.join(" | ")} in its row schema`);
    else if (kinds.size === 0) messages.push(`is ${kind} in PostgreSQL, nothing but null in its row schema`);
    if (nullability === "null" && !nullable) messages.push("can be null, and its row schema refuses null");
    if (nullability === "never" && nullable && wrong.length === 0)
      messages.push("is never null, and its row schema accepts null");
  } else if (nullability === "null" && !nullable && !kinds.has("unknown")) {
    // JSON's own null is a value of a column that is NOT NULL, so the other way round nothing can be said.
    messages.push("can be null, and its row schema refuses null");
  }
  if (optional) messages.push("is always there, and its row schema makes it optional");
  return messages;
};

/** Holds the columns that PostgreSQL described against what a row schema takes. */
export const rowMismatches = (columns: readonly Column[], row: ReadonlyMap<string, Accepted>): Mismatch[] => {
  const seen = new Set<string>();
  const mismatches: Mismatch[] = [];
  for (const column of columns) {
    const accepted = row.get(column.name);
    const messages = seen.has(column.name)
      ? ["is returned twice"]
      : accepted
        ? columnMismatch(column, accepted)
        : ["is returned, and its row schema lacks it"];
    seen.add(column.name);
    mismatches.push(...messages.map((message) => ({ column: column.name, message })));
  }
  for (const column of row.keys()) {
    if (!seen.has(column)) mismatches.push({ column, message: "is in the row schema, and not returned" });
  }
  return mismatches;
};
