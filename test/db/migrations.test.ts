import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { committedMigrations, pendingMigrations } from "../../src/db/migrations.ts";
import { definitions, runScript } from "../support/catalog.ts";
import { type TestDatabase, createDatabase, createEmptyDatabase } from "../support/database.ts";

/** Of the initial schema as it was given; it is never edited. */
const INITIAL_SHA256 = "fae074716818079a4d21197de8a7f535abaf684c7995ecadd4e1d0ed39bb2b67";
const INITIAL_TABLES = [
  ...["tenants", "users", "user_identities", "refresh_sessions", "otp_codes", "org_nodes", "org_node_paths", "roles"],
  ...["capabilities", "role_capabilities", "org_assignments", "visibility_grants", "invitations", "audit_events"],
  ...["services", "service_secrets", "service_permissions", "service_sessions"],
];

const INITIAL = new URL("../../migrations/committed/000001-initial-schema.sql", import.meta.url);
const statements = readFileSync(INITIAL, "utf8").replace(/^(--! .*\n)+\n/, "");

let migrated: TestDatabase;
let initial: TestDatabase;

beforeAll(async () => {
  [migrated, initial] = await Promise.all([createDatabase(), createEmptyDatabase()]);
  await runScript(initial.url, statements);
});

afterAll(() => Promise.all([migrated.drop(), initial.drop()]));

test("the first migration is the initial schema, byte for byte", () => {
  expect(createHash("sha256").update(statements).digest("hex")).toBe(INITIAL_SHA256);
});

test("the initial schema has its eighteen tables", async () => {
  const tables = [...(await definitions(initial.url)).keys()].filter((thing) => thing.startsWith("table "));
  expect(tables.sort()).toEqual(INITIAL_TABLES.map((table) => `table ${table}`).sort());
});

test("every table, column, constraint and index of the initial schema stands unchanged", async () => {
  const [before, after] = await Promise.all([definitions(initial.url), definitions(migrated.url)]);
  const kept = new Map([...before.keys()].map((thing) => [thing, after.get(thing)]));
  expect(kept).toEqual(before);
});

test("columns added to the initial schema's tables ask nothing of a bulk load", async () => {
  const [before, after] = await Promise.all([definitions(initial.url), definitions(migrated.url)]);
  const demanding = [...after].filter(
    ([thing, definition]) =>
      INITIAL_TABLES.some((table) => thing.startsWith(`column ${table}.`)) &&
      !before.has(thing) &&
      definition.includes("NOT NULL") &&
      !definition.includes("DEFAULT"),
  );
  expect(demanding).toEqual([]);
});

test("what the bookkeeping does not name is pending", () => {
  expect(pendingMigrations([])).toEqual(committedMigrations());
  expect(pendingMigrations(["000001.sql"])).toEqual(committedMigrations().slice(1));
  expect(pendingMigrations(committedMigrations().map((file) => `${file.slice(0, 6)}.sql`))).toEqual([]);
});
