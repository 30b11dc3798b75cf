import { type CommonQueryMethods, type QuerySqlToken, sql } from "slonik";
import { z } from "zod";

/** One step of a plan. */
export interface PlanNode {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Index Name"?: string;
  /** How many it gave, each time that it was run. */
  readonly "Actual Rows": number;
  readonly "Actual Loops": number;
  readonly "Rows Removed by Filter"?: number;
  /** Blocks of tables and indexes that it and those below it read. */
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
  readonly Plans?: readonly PlanNode[];
}

const planRow = z.object({ "QUERY PLAN": z.custom<readonly [{ readonly Plan: PlanNode }]>() });

const stepsOf = (node: PlanNode): readonly PlanNode[] => [node, ...(node.Plans ?? []).flatMap(stepsOf)];

/** The steps by which PostgreSQL answers a statement, which is run. */
export const planOf = async (db: CommonQueryMethods, { sql: text, values }: QuerySqlToken) => {
  const explain = {
    ...sql.type(planRow)``,
    sql: `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) ${text}`,
    values,
  };
  return stepsOf((await db.one(explain))["QUERY PLAN"][0].Plan);
};

export const indexesOf = (steps: readonly PlanNode[]): readonly string[] =>
  steps.flatMap((step) => step["Index Name"] ?? []);

export const sortsOf = (steps: readonly PlanNode[]): number =>
  steps.filter((step) => step["Node Type"].includes("Sort")).length;

/** The tables that are read from end to end. */
export const scannedOf = (steps: readonly PlanNode[]): readonly string[] =>
  steps.filter((step) => step["Node Type"] === "Seq Scan").flatMap((step) => step["Relation Name"] ?? []);

/** The rows that were read of tables and indexes, kept or not. */
export const rowsReadOf = (steps: readonly PlanNode[]): number =>
  steps
    .filter((step) => step["Relation Name"] !== undefined)
    .map((step) => (step["Actual Rows"] + (step["Rows Removed by Filter"] ?? 0)) * step["Actual Loops"])
    .reduce((sum, rows) => sum + rows, 0);

/** How often a block of a table or an index was read, from memory or not. */
export const blocksReadOf = ([top]: readonly PlanNode[]): number =>
  top === undefined ? 0 : top["Shared Hit Blocks"] + top["Shared Read Blocks"];
