import { relative } from "node:path";
import ts from "typescript";
import type { Accepted, Kind } from "./row-types.ts";

export interface Finding {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  readonly message: string;
}

/** A statement as slonik would send it, and what its row schema takes. */
export interface Statement {
  readonly text: string;
  /** Under which it is prepared. */
  readonly name: string | undefined;
  /** Columns of the row schema; undefined where there is none, as in `sql.unsafe`. */
  readonly row: ReadonlyMap<string, Accepted> | undefined;
  /** Where an offset of `text`, a column of the schema, or the tag itself stands in the source. */
  findingAt(where: { readonly offset: number } | { readonly column: string } | "tag", message: string): Finding;
}

const findingAtNode = (source: ts.SourceFile, position: number, message: string): Finding => {
  const { line, character } = source.getLineAndCharacterOfPosition(position);
  return { file: relative(process.cwd(), source.fileName), line: line + 1, column: character + 1, message };
};

const hasFlag = (type: ts.Type, flag: number) => (type.flags & flag) !== 0;

// Not on the public enum, unlike StringLike and its kin.
const anyOrUnknown = ts.TypeFlags.Any | ts.TypeFlags.Unknown;

const flagKinds: readonly (readonly [flag: number, kind: Kind])[] = [
  [anyOrUnknown, "unknown"],
  [ts.TypeFlags.StringLike, "string"],
  [ts.TypeFlags.NumberLike, "number"],
  [ts.TypeFlags.BooleanLike, "boolean"],
  [ts.TypeFlags.BigIntLike, "bigint"],
];

/** Of `sql.prepared("name", …)`. */
const nameOf = (tag: ts.Expression): string | undefined => {
  if (!ts.isCallExpression(tag) || !ts.isPropertyAccessExpression(tag.expression)) return undefined;
  const [name] = tag.expression.name.text === "prepared" ? tag.arguments : [];
  return name && ts.isStringLiteral(name) ? name.text : undefined;
};

/** A connection knows one statement by a name, and refuses another. */
const sharedNames = (statements: readonly Statement[]): Finding[] => {
  const byName = Map.groupBy(statements, ({ name }) => name);
  return [...byName].flatMap(([name, [, ...others]]) =>
    name === undefined
      ? []
      : others.map((other) => other.findingAt("tag", `another statement is prepared as "${name}" too`)),
  );
};

class Reader {
  readonly #checker: ts.TypeChecker;
  readonly #source: ts.SourceFile;
  readonly statements: Statement[] = [];
  readonly findings: Finding[] = [];

  constructor(checker: ts.TypeChecker, source: ts.SourceFile) {
    this.#checker = checker;
    this.#source = source;
  }

  read(node: ts.Node = this.#source): void {
    if (ts.isTaggedTemplateExpression(node)) this.#readTemplate(node);
    ts.forEachChild(node, (child) => this.read(child));
  }

  #readTemplate(node: ts.TaggedTemplateExpression): void {
    const query = this.#checker.getTypeAtLocation(node);
    // The type of sql.type(…)`…` and its kin, by whatever name they are called; a fragment has no parser.
    const parser = this.#property(query, "parser", node);
    if (!parser || !query.getProperty("sql") || !query.getProperty("values")) return;
    const rendered = this.#render(node.template);
    if (!rendered) return;
    const input = this.#input(parser, node);
    const columns = new Map<string, ts.Symbol>(
      input && !hasFlag(input, anyOrUnknown)
        ? this.#checker.getPropertiesOfType(input).map((property) => [property.name, property])
        : [],
    );
    const shape = this.#property(parser, "shape", node);
    const source = this.#source;
    this.statements.push({
      text: rendered.text,
      name: nameOf(node.tag),
      row:
        input && !hasFlag(input, anyOrUnknown)
          ? new Map([...columns].map(([name, symbol]) => [name, this.#accepted(symbol, node)]))
          : undefined,
      findingAt(where, message) {
        if (where === "tag") return findingAtNode(source, node.getStart(source), message);
        if ("offset" in where) return findingAtNode(source, rendered.positionOf(where.offset), message);
        const here = findingAtNode(source, node.getStart(source), message);
        const declaration = shape?.getProperty(where.column)?.declarations?.[0];
        if (!declaration || !ts.isPropertyAssignment(declaration)) return here;
        // Schemas are shared: the line to change is the schema's, the statement says why.
        const statement = `${message} (statement at ${here.file}:${String(here.line)})`;
        return findingAtNode(declaration.getSourceFile(), declaration.getStart(), statement);
      },
    });
  }

  #property(type: ts.Type, name: string, at: ts.Node): ts.Type | undefined {
    const symbol = type.getProperty(name);
    return symbol && this.#checker.getNonNullableType(this.#checker.getTypeOfSymbolAtLocation(symbol, at));
  }

  /** What the schema takes: slonik's row, before any transform. */
  #input(parser: ts.Type, at: ts.Node): ts.Type | undefined {
    const zod = this.#property(parser, "_zod", at);
    const standard = this.#property(parser, "~standard", at);
    const types = zod ?? (standard && this.#property(standard, "types", at));
    const symbol = types?.getProperty("input");
    return symbol && this.#checker.getTypeOfSymbolAtLocation(symbol, at);
  }

  #accepted(symbol: ts.Symbol, at: ts.Node): Accepted {
    const type = this.#checker.getTypeOfSymbolAtLocation(symbol, at);
    const kinds = this.#kinds(type);
    const members = type.isUnion() ? type.types : [type];
    return {
      kinds,
      nullable: members.some((member) => hasFlag(member, ts.TypeFlags.Null)) || kinds.has("unknown"),
      // z.unknown() is optional to the compiler, and there only for JSON.
      optional: (symbol.flags & ts.SymbolFlags.Optional) !== 0 && !kinds.has("unknown"),
    };
  }

  #kinds(type: ts.Type): Set<Kind> {
    const kinds = new Set<Kind>();
    for (const member of type.isUnion() ? type.types : [type]) {
      if (hasFlag(member, ts.TypeFlags.Null | ts.TypeFlags.Undefined | ts.TypeFlags.Void)) continue;
      const kind = flagKinds.find(([flag]) => hasFlag(member, flag))?.[1];
      if (kind) kinds.add(kind);
      else if (this.#checker.isArrayType(member)) {
        const [element] = this.#checker.getTypeArguments(member as ts.TypeReference);
        for (const of of element ? this.#kinds(element) : []) kinds.add(`${of}[]`);
      } else kinds.add(["Buffer", "Uint8Array"].includes(member.symbol.name) ? "buffer" : "object");
    }
    return kinds;
  }

  /** The text with slonik's placeholders, and the way back from its offsets to those of the source. */
  #render(template: ts.TemplateLiteral): { text: string; positionOf(offset: number): number } | undefined {
    if (ts.isNoSubstitutionTemplateLiteral(template)) {
      const start = template.getStart(this.#source) + 1;
      return { text: template.text, positionOf: (offset) => start + offset };
    }
    // Raw and cooked text are as long as each other unless something is escaped, and then the way back is near enough.
    const pieces: { offset: number; position: number }[] = [
      { offset: 0, position: template.head.getStart(this.#source) + 1 },
    ];
    let text = template.head.text;
    let parameters = 0;
    for (const { expression, literal } of template.templateSpans) {
      pieces.push({ offset: text.length, position: expression.getStart(this.#source) });
      const placeholder = this.#placeholder(expression, () => `$${String(++parameters)}`);
      if (placeholder === undefined) {
        const message =
          "a statement put together from pieces cannot be checked: write it out, with values alone between ${ and }";
        this.findings.push(findingAtNode(this.#source, expression.getStart(this.#source), message));
        return undefined;
      }
      text += placeholder;
      pieces.push({ offset: text.length, position: literal.getStart(this.#source) + 1 });
      text += literal.text;
    }
    return {
      text,
      positionOf(offset) {
        const index = pieces.findLastIndex((piece) => piece.offset <= offset);
        const piece = pieces[index] ?? { offset: 0, position: 0 };
        // Odd pieces are placeholders: what is wrong with one stands at its expression.
        return piece.position + (index % 2 === 0 ? offset - piece.offset : 0);
      },
    };
  }

  #placeholder(expression: ts.Expression, next: () => string): string | undefined {
    const type = this.#checker.getTypeAtLocation(expression);
    const texts = (type.isUnion() ? type.types : [type])
      .filter((member) => !hasFlag(member, ts.TypeFlags.Null))
      .map((member) => this.#placeholderOf(member, expression));
    const [first = "$"] = texts;
    if (texts.some((text) => text === undefined || text !== first)) return undefined;
    return first.replaceAll("$", next);
  }

  /** As slonik renders it, each parameter as a mere `$`. */
  #placeholderOf(type: ts.Type, expression: ts.Expression): string | undefined {
    const primitive =
      ts.TypeFlags.StringLike | ts.TypeFlags.NumberLike | ts.TypeFlags.BooleanLike | ts.TypeFlags.BigIntLike;
    if (hasFlag(type, primitive)) return "$";
    switch (type.aliasSymbol?.name ?? type.symbol.name) {
      case "Buffer":
        return "$";
      case "UuidSqlToken":
        return "$::uuid";
      case "TimestampSqlToken":
        return "to_timestamp($)";
      case "DateSqlToken":
        return "$::date";
      case "JsonSqlToken":
        return "$::json";
      case "JsonBinarySqlToken":
        return "$::jsonb";
      case "BinarySqlToken":
        return "$::bytea";
      case "ArraySqlToken": {
        const memberType = this.#property(type, "memberType", expression);
        const member = (memberType?.isUnion() ? memberType.types : []).find((one) => one.isStringLiteral());
        return member && `$::"${member.value}"[]`;
      }
      default:
        return undefined;
    }
  }
}

/** Every statement in the files of a program, and a finding for each that cannot be read. */
export const readStatements = (program: ts.Program, isChecked: (file: string) => boolean) => {
  const readers = program
    .getSourceFiles()
    .filter(({ fileName, isDeclarationFile }) => !isDeclarationFile && isChecked(fileName))
    .map((source) => {
      const reader = new Reader(program.getTypeChecker(), source);
      reader.read();
      return reader;
    });
  const statements = readers.flatMap((reader) => reader.statements);
  return { statements, findings: [...readers.flatMap(({ findings }) => findings), ...sharedNames(statements)] };
};
