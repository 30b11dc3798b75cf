import { readdirSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createDatabase } from "../support/database.ts";
import { lint } from "./lint.ts";
import { checkRowSchemas } from "./row-schemas.ts";
import type { Finding } from "./statements.ts";

const fixtures = join(import.meta.dirname, "fixtures");
const files = readdirSync(fixtures).filter((name) => name.endsWith(".ts"));

let linted: Finding[];
let described: Finding[];
let drop: (() => Promise<void>) | undefined;

beforeAll(async () => {
  const database = await createDatabase();
  drop = () => database.drop();
  const rows = checkRowSchemas(database.url, join(fixtures, "tsconfig.json"), (file) =>
    file.startsWith(fixtures + sep),
  );
  linted = await lint(["--no-ignore", ...files.map((name) => join(fixtures, name))], database.url);
  described = (await rows).findings;
}, 60_000);

afterAll(() => drop?.());

const of = (findings: readonly Finding[], name: string) =>
  findings
    .filter(({ file }) => file === relative(process.cwd(), join(fixtures, name)))
    .map(({ line, message }) => `${String(line)}: ${message}`);

const wrong: readonly (readonly [file: string, line: number, fault: string])[] = [
  ["wrong-column-select.ts", 7, "column t.tenant_idd does not exist"],
  ["wrong-column-insert.ts", 5, 'column "cap_name" of relation "capabilities" does not exist'],
  ["wrong-column-update.ts", 5, 'column "active_flags" of relation "org_nodes" does not exist'],
  ["wrong-table.ts", 4, 'relation "org_node_path" does not exist'],
  ["wrong-type.ts", 5, 'column "attempt_count" is of type integer but expression is of type text'],
];

test.each(wrong)("%s is found at line %i, by the linter and by PostgreSQL's description", (file, line, fault) => {
  expect(of(linted, file)).toEqual([`${String(line)}: Invalid Query: ${fault} (@ts-safeql/check-sql)`]);
  expect(of(described, file)).toEqual([`${String(line)}: ${fault}`]);
});

test("a statement put together from fragments is refused, since nothing could check it", () => {
  expect(of(linted, "fragments.ts")).toEqual([expect.stringContaining("5: Invalid Query: ")]);
  expect(of(described, "fragments.ts")).toEqual([expect.stringContaining("5: a statement put together from pieces")]);
});

test("a row schema that disagrees is found at its own line, with the statement it disagrees with", () => {
  const at = (statement: number) =>
    `(statement at ${relative(process.cwd(), join(fixtures, "row-schemas.ts"))}:${String(statement)})`;
  expect(of(described, "row-schemas.ts")).toEqual([
    `6: column "email_addr" can be null, and its row schema refuses null ${at(12)}`,
    `7: column "created_utc" is number in PostgreSQL, string in its row schema ${at(12)}`,
    `8: column "updated_utc" is never null, and its row schema accepts null ${at(12)}`,
    `9: column "nickname" is in the row schema, and not returned ${at(12)}`,
    `12: column "display_label" is returned, and its row schema lacks it`,
    `15: column "live" is bigint in PostgreSQL, number in its row schema ${at(15)}`,
    `15: column "last_utc" can be null, and its row schema refuses null ${at(15)}`,
    `21: column "parent_label" can be null, and its row schema refuses null ${at(18)}`,
    `22: column "flags" is boolean[] in PostgreSQL, string[] in its row schema ${at(18)}`,
    `28: returns rows that no row schema reads`,
    `31: column "created_utc" is number in PostgreSQL, unknown in its row schema ${at(31)}`,
  ]);
});

test("a name under which two statements are prepared is found, since a connection would refuse the second", () => {
  expect(of(described, "prepared-names.ts")).toEqual(['10: another statement is prepared as "select-label" too']);
});

test("clean statements have no finding", () => {
  expect(of(linted, "clean.ts")).toEqual([]);
  expect(of(described, "clean.ts")).toEqual([]);
});
