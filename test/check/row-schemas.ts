import { dirname } from "node:path";
import { type ParseResult, parse } from "libpg-query";
import postgres from "postgres";
import ts from "typescript";
import { type Catalog, columnNullability } from "./nullability.ts";
import { type Nullability, rowMismatches } from "./row-types.ts";
import { type Finding, type Statement, readStatements } from "./statements.ts";

export type { Finding } from "./statements.ts";

const readProgram = (tsconfig: string): ts.Program => {
  const { config } = ts.readConfigFile(tsconfig, (path) => ts.sys.readFile(path)) as { config: unknown };
  const { options, fileNames } = ts.parseJsonConfigFileContent(config, ts.sys, dirname(tsconfig));
  return ts.createProgram(fileNames, options);
};

const readCatalog = async (sql: postgres.Sql): Promise<Catalog> => {
  const rows = await sql<{ schema: string; table: string; column: string; notNull: boolean; visible: boolean }[]>`
    SELECT n.nspname AS schema, c.relname AS table, a.attname AS column, a.attnotnull AS "notNull",
      pg_table_is_visible(c.oid) AS visible
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%'
    ORDER BY c.oid, a.attnum`;
  const catalog = new Map<string, Map<string, Nullability>>();
  for (const { schema, table, column, notNull, visible } of rows) {
    for (const name of visible ? [table, `${schema}.${table}`] : [`${schema}.${table}`]) {
      catalog.set(name, (catalog.get(name) ?? new Map<string, Nullability>()).set(column, notNull ? "never" : "null"));
    }
  }
  return catalog;
};

const parsed = (text: string): Promise<ParseResult | undefined> => parse(text).catch(() => undefined);

/** Holds one statement's row schema against what PostgreSQL says that the statement returns. */
const checkStatement = async (sql: postgres.Sql, catalog: Catalog, statement: Statement): Promise<Finding[]> => {
  const { text, row } = statement;
  let columns: postgres.Statement["columns"];
  try {
    // A statement that returns nothing has no description of rows.
    ({ columns = [] as typeof columns } = (await sql
      .unsafe(text, [], { prepare: true })
      .describe()) as Partial<postgres.Statement>);
  } catch (error) {
    if (!(error instanceof postgres.PostgresError)) throw error;
    const { message, position } = error;
    return [statement.findingAt(position ? { offset: Number(position) - 1 } : "tag", message)];
  }
  if (!row) {
    return columns.length === 0 ? [] : [statement.findingAt("tag", "returns rows that no row schema reads")];
  }
  const ast = columns.length > 0 ? await parsed(text) : undefined;
  const nullabilities = ast ? columnNullability(ast, catalog) : [];
  const described = columns.map(({ name, type }, index) => ({
    name,
    typeOid: type,
    nullability: (nullabilities.length === columns.length ? nullabilities[index] : undefined) ?? "maybe",
  }));
  return rowMismatches(described, row).map(({ column, message }) =>
    statement.findingAt({ column }, `column "${column}" ${message}`),
  );
};

const inOrder = (left: Finding, right: Finding) =>
  left.file.localeCompare(right.file) || left.line - right.line || left.column - right.column;

/**
 * Each statement that PostgreSQL refuses, and each row schema that disagrees with the columns that it describes.
 *
 * @param tsconfig the project whose files are read
 * @param isChecked says by its absolute path whether a file's statements count
 */
export const checkRowSchemas = async (
  databaseUrl: string,
  tsconfig: string,
  isChecked: (file: string) => boolean,
): Promise<{ findings: Finding[]; statements: number }> => {
  const { statements, findings } = readStatements(readProgram(tsconfig), isChecked);
  const sql = postgres(databaseUrl, { max: 1, onnotice: () => undefined });
  try {
    const catalog = await readCatalog(sql);
    const found = await Promise.all(statements.map((statement) => checkStatement(sql, catalog, statement)));
    return { findings: [...findings, ...found.flat()].sort(inOrder), statements: statements.length };
  } finally {
    await sql.end();
  }
};
