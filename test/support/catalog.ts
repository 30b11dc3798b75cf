import { type QuerySqlToken, sql } from "slonik";
import { type ZodType, z } from "zod";
import { withPool } from "./admin.ts";

const rowsOf = <T extends ZodType>(url: string, query: QuerySqlToken<T>) =>
  withPool(url, async (pool) => (await pool.any(query)) as z.output<T>[]);

/** Runs a script of plain statements, each ended by a semicolon at the end of its line. */
export const runScript = (url: string, script: string) =>
  withPool(url, async (pool) => {
    for (const statement of script.trimEnd().split(/;$/m).filter(Boolean))
      await pool.query({ ...sql.unsafe``, sql: statement });
  });

const definitionRow = z.object({ thing: z.string(), definition: z.string() });

/** All that the schema says: each table, column, constraint and index by its name. */
export const definitions = async (url: string): Promise<ReadonlyMap<string, string>> => {
  const rows = await rowsOf(
    url,
    sql.type(definitionRow)`
      SELECT 'table ' || relname AS thing, relpersistence::text AS definition
      FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
      UNION ALL
      SELECT 'column ' || relname || '.' || attname,
        format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
          || coalesce(' DEFAULT ' || pg_get_expr(adbin, adrelid), '')
      FROM pg_attribute
      JOIN pg_class ON pg_class.oid = attrelid AND relkind = 'r' AND relnamespace = 'public'::regnamespace
      LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
      WHERE attnum > 0 AND NOT attisdropped
      UNION ALL
      SELECT 'constraint ' || conrelid::regclass || '.' || conname, pg_get_constraintdef(oid)
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid <> 0
      UNION ALL
      SELECT 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    `,
  );
  return new Map(rows.map(({ thing, definition }) => [thing, definition]));
};

const foreignKeyRow = z.object({ table: z.string(), name: z.string(), columns: z.string().array() });
export type ForeignKey = z.output<typeof foreignKeyRow>;

/** The foreign keys, each with the columns that refer. */
export const foreignKeys = (url: string): Promise<ForeignKey[]> =>
  rowsOf(
    url,
    sql.type(foreignKeyRow)`
      SELECT conrelid::regclass::text AS "table", conname::text AS name, array_agg(attname::text ORDER BY place) AS columns
      FROM pg_constraint
      CROSS JOIN unnest(conkey) WITH ORDINALITY AS key (attnum, place)
      JOIN pg_attribute USING (attnum)
      WHERE contype = 'f' AND connamespace = 'public'::regnamespace AND attrelid = conrelid
      GROUP BY conrelid, conname
      ORDER BY 1, 2
    `,
  );

const indexRow = z.object({ name: z.string(), table: z.string(), definition: z.string() });

export interface Index {
  readonly name: string;
  readonly table: string;
  /** As PostgreSQL writes them, with collation and direction. */
  readonly columns: readonly string[];
  /** Of a partial index. */
  readonly where: string | undefined;
}

export const indexes = async (url: string): Promise<Index[]> => {
  const rows = await rowsOf(
    url,
    sql.type(indexRow)`
      SELECT indexname::text AS name, tablename::text AS "table", indexdef AS definition
      FROM pg_indexes WHERE schemaname = 'public'
    `,
  );
  return rows.map(({ name, table, definition }) => {
    const [, columns, where] =
      /USING btree \(([^)]*)\)(?: INCLUDE \([^)]*\))?(?: WHERE \((.*)\))?$/.exec(definition) ?? [];
    if (!columns) throw new Error(`cannot read the index ${definition}`);
    return { name, table, columns: columns.split(", "), where };
  });
};
