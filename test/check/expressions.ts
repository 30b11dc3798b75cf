import type { FuncCall, Node } from "libpg-query";
import type { Nullability } from "./row-types.ts";

/** The columns of a statement; undefined where they cannot be told. */
export type Output = readonly { readonly name: string; readonly nullability: Nullability }[] | undefined;

/** One entry of FROM. */
export interface Source {
  readonly alias: string;
  readonly columns: ReadonlyMap<string, Nullability> | undefined;
}

/** Where an expression stands. */
export interface Scope {
  readonly sources: readonly Source[];
  readonly outer: Scope | undefined;
  readonly grouped: boolean;
  readonly having: boolean;
  subselect(node: Node | undefined): Output;
}

// Never null, whatever they are given.
const total = new Set(
  "count now clock_timestamp statement_timestamp transaction_timestamp gen_random_uuid row_number rank dense_rank concat concat_ws jsonb_build_object jsonb_build_array json_build_object json_build_array random txid_current pg_current_xact_id num_nulls num_nonnulls".split(
    " ",
  ),
);
// Null exactly when one of their arguments is.
const strict = new Set(
  "lower upper btrim ltrim rtrim length char_length octet_length md5 sha256 encode decode abs ceil floor round trunc date_trunc to_timestamp to_jsonb cardinality left right replace substr substring starts_with array_append array_prepend".split(
    " ",
  ),
);
const aggregates = new Set(
  "max min sum avg bool_and bool_or every array_agg string_agg json_agg jsonb_agg json_object_agg jsonb_object_agg".split(
    " ",
  ),
);
// Strict and total over values that are not null; `->` and its kin are null where a key is missing.
const strictOperators = new Set("= <> < <= > >= + - * / % || && @> <@ ~ ~* !~ !~*".split(" "));

export const fieldNames = (nodes: readonly Node[]): string[] =>
  nodes.flatMap((node) => ("String" in node ? [node.String.sval ?? ""] : []));

/** Null as soon as one of them is. */
const strictly = (values: readonly Nullability[]): Nullability =>
  values.every((value) => value === "never") ? "never" : values.includes("null") ? "null" : "maybe";

/** Null only if all of them are. */
const firstOf = (values: readonly Nullability[]): Nullability =>
  values.includes("never") ? "never" : values.every((value) => value === "null") ? "null" : "maybe";

/** One of them: certain to be possible if any is. */
const oneOf = (values: readonly Nullability[]): Nullability =>
  values.includes("null") ? "null" : values.every((value) => value === "never") ? "never" : "maybe";

const columnNullability = (fields: readonly string[], scope: Scope): Nullability => {
  const name = fields.at(-1) ?? "";
  const alias = fields.length > 1 ? fields.at(-2) : undefined;
  const sources = scope.sources.filter((source) => alias === undefined || source.alias === alias);
  const found = sources.find(({ columns }) => columns?.has(name));
  if (found?.columns) {
    // An unqualified name may stand in a source whose columns nobody knows.
    const certain = alias !== undefined || sources.every(({ columns }) => columns);
    return certain ? (found.columns.get(name) ?? "maybe") : "maybe";
  }
  if (sources.some(({ columns }) => !columns) || !scope.outer) return "maybe";
  return columnNullability(fields, scope.outer);
};

const isAggregate = (node: Node | undefined): boolean =>
  node !== undefined &&
  "FuncCall" in node &&
  !node.FuncCall.over &&
  ["count", ...aggregates].includes(functionName(node.FuncCall));

const functionName = ({ funcname }: FuncCall): string => fieldNames(funcname ?? []).at(-1) ?? "";

const functionNullability = (call: FuncCall, scope: Scope): Nullability => {
  const name = functionName(call);
  const args = (call.args ?? []).map((arg) => expressionNullability(arg, scope));
  if (total.has(name)) return "never";
  if (strict.has(name)) return strictly(args);
  if (!aggregates.has(name) || call.over) return "maybe";
  // Without GROUP BY there may be no row to aggregate, and then there is no value.
  if (!scope.grouped) return scope.having ? "maybe" : "null";
  if (call.agg_filter) return "null";
  return name.endsWith("_agg") && name !== "string_agg" ? "never" : args[0] === "never" ? "never" : "maybe";
};

const scalarNullability = (subselect: Node | undefined, scope: Scope): Nullability => {
  const output = scope.subselect(subselect);
  const select = subselect && "SelectStmt" in subselect ? subselect.SelectStmt : undefined;
  const [target] = select?.targetList ?? [];
  const value = target && "ResTarget" in target ? target.ResTarget.val : undefined;
  // An aggregate without GROUP BY, or no FROM and no WHERE, gives exactly one row; all else may give none.
  const oneRow =
    select &&
    !select.larg &&
    !select.havingClause &&
    !select.limitCount &&
    !select.limitOffset &&
    ((!select.groupClause && isAggregate(value)) || (!select.fromClause && !select.whereClause));
  if (oneRow) return output?.[0]?.nullability ?? "maybe";
  return output?.[0]?.nullability === "null" ? "null" : "maybe";
};

/** Whether an expression can be null: certainly never, possibly for certain, or not known. */
export const expressionNullability = (node: Node | undefined, scope: Scope): Nullability => {
  if (!node) return "maybe";
  const of = (child: Node | undefined) => expressionNullability(child, scope);
  if ("ColumnRef" in node) return columnNullability(fieldNames(node.ColumnRef.fields ?? []), scope);
  if ("A_Const" in node) return node.A_Const.isnull ? "null" : "never";
  if ("TypeCast" in node) return of(node.TypeCast.arg);
  if ("CollateClause" in node) return of(node.CollateClause.arg);
  if ("FuncCall" in node) return functionNullability(node.FuncCall, scope);
  if ("CoalesceExpr" in node) return firstOf((node.CoalesceExpr.args ?? []).map(of));
  if ("MinMaxExpr" in node) return firstOf((node.MinMaxExpr.args ?? []).map(of));
  if ("NullTest" in node || "BooleanTest" in node || "A_ArrayExpr" in node || "SQLValueFunction" in node)
    return "never";
  if ("BoolExpr" in node) {
    return (node.BoolExpr.args ?? []).every((arg) => of(arg) === "never") ? "never" : "maybe";
  }
  if ("CaseExpr" in node) {
    const results = (node.CaseExpr.args ?? []).map((arg) => of("CaseWhen" in arg ? arg.CaseWhen.result : undefined));
    return oneOf([...results, node.CaseExpr.defresult ? of(node.CaseExpr.defresult) : "null"]);
  }
  if ("SubLink" in node) {
    const { subLinkType, subselect } = node.SubLink;
    if (subLinkType === "EXISTS_SUBLINK" || subLinkType === "ARRAY_SUBLINK") return "never";
    return subLinkType === "EXPR_SUBLINK" ? scalarNullability(subselect, scope) : "maybe";
  }
  if ("A_Expr" in node) {
    const { kind, name, lexpr, rexpr } = node.A_Expr;
    if (kind === "AEXPR_DISTINCT" || kind === "AEXPR_NOT_DISTINCT") return "never";
    const operands = [...(lexpr ? [of(lexpr)] : []), of(rexpr)];
    if (kind === "AEXPR_LIKE" || kind === "AEXPR_ILIKE") return strictly(operands);
    if (kind === "AEXPR_OP" && strictOperators.has(fieldNames(name ?? []).at(-1) ?? "")) return strictly(operands);
  }
  return "maybe";
};
