import type { Node, ParseResult, SelectStmt, WithClause } from "libpg-query";
import { type Output, type Scope, type Source, expressionNullability, fieldNames } from "./expressions.ts";
import type { Nullability } from "./row-types.ts";

/** Whether each column of each table of the database, by `table` and by `schema.table`, can be null. */
export type Catalog = ReadonlyMap<string, ReadonlyMap<string, Nullability>>;

type Ctes = ReadonlyMap<string, Output>;

/** Either of two rows: certain only where both are. */
const either = (left: Nullability, right: Nullability): Nullability =>
  left === "null" || right === "null" ? "null" : left === right ? left : "maybe";

/** The side of an outer join that may be missing. Joined ON TRUE it is often one row for certain: an aggregate. */
const outer = (sources: readonly Source[], quals?: Node): Source[] => {
  const missing = quals && "A_Const" in quals ? "maybe" : "null";
  return sources.map(({ alias, columns }) => ({
    alias,
    columns: columns && new Map([...columns].map(([name, value]) => [name, value === "null" ? value : missing])),
  }));
};

const renamed = (output: Output, aliases: readonly string[]): Output =>
  output && output.map((column, index) => ({ ...column, name: aliases[index] ?? column.name }));

const sourceOf = (alias: string, output: Output): Source => ({
  alias,
  columns: output && new Map(output.map(({ name, nullability }) => [name, nullability])),
});

const names = (nodes: readonly Node[] | undefined): string[] => fieldNames(nodes ?? []);

class Statement {
  readonly #catalog: Catalog;

  constructor(catalog: Catalog) {
    this.#catalog = catalog;
  }

  /** The columns that a statement returns; undefined where they cannot be told. */
  output(node: Node | undefined, ctes: Ctes, outerScope?: Scope): Output {
    if (!node) return undefined;
    if ("SelectStmt" in node) return this.#select(node.SelectStmt, ctes, outerScope);
    if ("InsertStmt" in node) {
      const { relation, returningClause, withClause, onConflictClause, cols, selectStmt } = node.InsertStmt;
      const all = this.#ctes(withClause, ctes);
      const target = this.#table(relation?.schemaname, relation?.relname, relation?.alias?.aliasname);
      const inserted = renamed(this.output(selectStmt, all), (cols ?? []).map(targetName));
      // A conflict's row has what it had before.
      const source = onConflictClause?.action === "ONCONFLICT_UPDATE" ? target : assigned(target, inserted);
      return this.#returning([source], returningClause?.exprs, all);
    }
    if ("UpdateStmt" in node) {
      const { relation, fromClause, whereClause, targetList, returningClause, withClause } = node.UpdateStmt;
      const all = this.#ctes(withClause, ctes);
      const target = this.#table(relation?.schemaname, relation?.relname, relation?.alias?.aliasname);
      const sources = [target, ...this.#from(fromClause, all)];
      const [first, ...rest] = narrowed(sources, whereClause);
      const set = this.#targets(targetList ?? [], this.#scope(sources, all, undefined, false, false));
      return this.#returning([assigned(first ?? target, set), ...rest], returningClause?.exprs, all);
    }
    if ("DeleteStmt" in node) {
      const { relation, usingClause, whereClause, returningClause, withClause } = node.DeleteStmt;
      const all = this.#ctes(withClause, ctes);
      const target = this.#table(relation?.schemaname, relation?.relname, relation?.alias?.aliasname);
      const sources = narrowed([target, ...this.#from(usingClause, all)], whereClause);
      return this.#returning(sources, returningClause?.exprs, all);
    }
    return undefined;
  }

  #returning(sources: readonly Source[], targets: readonly Node[] | undefined, ctes: Ctes): Output {
    return this.#targets(targets ?? [], this.#scope(sources, ctes, undefined, false, false));
  }

  #select(select: SelectStmt, ctes: Ctes, outerScope: Scope | undefined): Output {
    const all = this.#ctes(select.withClause, ctes);
    if (select.larg && select.rarg) {
      const left = this.#select(select.larg, all, outerScope);
      const right = this.#select(select.rarg, all, outerScope);
      if (!left || !right) return undefined;
      return left.map(({ name, nullability }, index) => ({
        name,
        nullability: either(nullability, right[index]?.nullability ?? "maybe"),
      }));
    }
    const sources = narrowed(this.#from(select.fromClause, all, outerScope), select.whereClause);
    const grouped = (select.groupClause?.length ?? 0) > 0;
    const scope = this.#scope(sources, all, outerScope, grouped, select.havingClause !== undefined);
    if (select.valuesLists) {
      const rows = select.valuesLists.map((row) => ("List" in row ? (row.List.items ?? []) : []));
      return rows[0]?.map((_, index) => ({
        name: `column${String(index + 1)}`,
        nullability: rows
          .map((row) => expressionNullability(row[index], scope))
          .reduce((left, right) => either(left, right)),
      }));
    }
    return this.#targets(select.targetList ?? [], scope);
  }

  #scope(
    sources: readonly Source[],
    ctes: Ctes,
    outerScope: Scope | undefined,
    grouped: boolean,
    having: boolean,
  ): Scope {
    const scope: Scope = {
      sources,
      grouped,
      having,
      outer: outerScope,
      subselect: (node) => this.output(node, ctes, scope),
    };
    return scope;
  }

  #targets(targets: readonly Node[], scope: Scope): Output {
    const columns: { name: string; nullability: Nullability }[] = [];
    for (const target of targets) {
      if (!("ResTarget" in target)) return undefined;
      const { name, val } = target.ResTarget;
      const fields = val && "ColumnRef" in val ? (val.ColumnRef.fields ?? []) : [];
      if (fields.some((field) => "A_Star" in field)) {
        const [alias] = names(fields);
        for (const source of scope.sources) {
          if (alias !== undefined && source.alias !== alias) continue;
          if (!source.columns) return undefined;
          for (const [column, nullability] of source.columns) columns.push({ name: column, nullability });
        }
      } else {
        columns.push({ name: name ?? names(fields).at(-1) ?? "", nullability: expressionNullability(val, scope) });
      }
    }
    return columns;
  }

  #ctes(clause: WithClause | undefined, inherited: Ctes): Ctes {
    const ctes = new Map(inherited);
    for (const node of clause?.ctes ?? []) {
      if (!("CommonTableExpr" in node)) continue;
      const { ctename = "", aliascolnames, ctequery } = node.CommonTableExpr;
      ctes.set(ctename, undefined);
      const base = clause?.recursive && ctequery && "SelectStmt" in ctequery ? ctequery.SelectStmt.larg : undefined;
      if (base) ctes.set(ctename, renamed(this.#select(base, ctes, undefined), names(aliascolnames)));
      ctes.set(ctename, renamed(this.output(ctequery, ctes), names(aliascolnames)));
    }
    return ctes;
  }

  #table(schema: string | undefined, name = "", alias = name): Source {
    return { alias, columns: this.#catalog.get(schema ? `${schema}.${name}` : name) };
  }

  #from(nodes: readonly Node[] | undefined, ctes: Ctes, outerScope?: Scope): Source[] {
    const sources: Source[] = [];
    for (const node of nodes ?? []) {
      // What stands left is seen by LATERAL.
      const lateral = this.#scope([...sources], ctes, outerScope, false, false);
      sources.push(...this.#fromNode(node, ctes, lateral));
    }
    return sources;
  }

  #fromNode(node: Node, ctes: Ctes, lateral: Scope): Source[] {
    if ("RangeVar" in node) {
      const { schemaname, relname = "", alias } = node.RangeVar;
      if (schemaname || !ctes.has(relname)) return [this.#table(schemaname, relname, alias?.aliasname)];
      return [sourceOf(alias?.aliasname ?? relname, renamed(ctes.get(relname), names(alias?.colnames)))];
    }
    if ("RangeSubselect" in node) {
      const { subquery, alias } = node.RangeSubselect;
      return [sourceOf(alias?.aliasname ?? "", renamed(this.output(subquery, ctes, lateral), names(alias?.colnames)))];
    }
    if ("RangeFunction" in node) {
      const { alias, ordinality } = node.RangeFunction;
      const columns = names(alias?.colnames);
      const output = columns.map((name, index) => ({
        name,
        nullability: ordinality && index === columns.length - 1 ? ("never" as const) : ("maybe" as const),
      }));
      return [sourceOf(alias?.aliasname ?? "", columns.length > 0 ? output : undefined)];
    }
    if ("JoinExpr" in node) {
      const { jointype, larg, rarg, quals } = node.JoinExpr;
      const left = larg ? this.#fromNode(larg, ctes, lateral) : [];
      const inner = { ...lateral, sources: [...lateral.sources, ...left] };
      const right = rarg ? this.#fromNode(rarg, ctes, inner) : [];
      if (jointype === "JOIN_LEFT") return [...left, ...outer(right, quals)];
      if (jointype === "JOIN_RIGHT") return [...outer(left, quals), ...right];
      if (jointype === "JOIN_FULL") return [...outer(left), ...outer(right)];
      return narrowed([...left, ...right], quals);
    }
    return [{ alias: "", columns: undefined }];
  }
}

/** Columns that a WHERE cannot let through as null; the schema may still be one that other statements share. */
const narrowed = (sources: readonly Source[], where: Node | undefined): Source[] => {
  const tested = conjuncts(where).flatMap(testedColumns);
  return sources.map((source) =>
    softened(source, (name) =>
      tested.some((fields) => fields.at(-1) === name && (fields.length === 1 || fields[0] === source.alias)),
    ),
  );
};

/** What a statement sets to a value, it knows better than the table. */
const assigned = (source: Source, set: Output): Source => {
  const values = new Set(set?.filter(({ nullability }) => nullability === "never").map(({ name }) => name));
  return softened(source, (name) => values.has(name));
};

const targetName = (target: Node): string => ("ResTarget" in target ? (target.ResTarget.name ?? "") : "");

const softened = ({ alias, columns }: Source, soften: (name: string) => boolean): Source => ({
  alias,
  columns:
    columns && new Map([...columns].map(([name, value]) => [name, value === "null" && soften(name) ? "maybe" : value])),
});

const conjuncts = (node: Node | undefined): Node[] => {
  if (!node) return [];
  if ("BoolExpr" in node && node.BoolExpr.boolop === "AND_EXPR") return (node.BoolExpr.args ?? []).flatMap(conjuncts);
  return [node];
};

/** Comparisons are strict: a row whose column is null does not pass. */
const testedColumns = (node: Node): string[][] => {
  if ("NullTest" in node) {
    return node.NullTest.nulltesttype === "IS_NOT_NULL" ? columnFields(node.NullTest.arg) : [];
  }
  if (!("A_Expr" in node) || node.A_Expr.kind === "AEXPR_DISTINCT" || node.A_Expr.kind === "AEXPR_NOT_DISTINCT") {
    return "SubLink" in node && node.SubLink.subLinkType === "ANY_SUBLINK" ? columnFields(node.SubLink.testexpr) : [];
  }
  return [...columnFields(node.A_Expr.lexpr), ...columnFields(node.A_Expr.rexpr)];
};

const columnFields = (node: Node | undefined): string[][] => {
  if (!node) return [];
  if ("TypeCast" in node) return columnFields(node.TypeCast.arg);
  return "ColumnRef" in node ? [names(node.ColumnRef.fields)] : [];
};

/** For each column that a statement returns, whether it can be null. */
export const columnNullability = (parsed: ParseResult, catalog: Catalog): readonly Nullability[] =>
  new Statement(catalog).output(parsed.stmts?.[0]?.stmt, new Map())?.map(({ nullability }) => nullability) ?? [];
