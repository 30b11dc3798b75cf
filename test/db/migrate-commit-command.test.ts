import { spawnSync } from "node:child_process";
import { cp, readFile, readdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { beforeEach, expect, test } from "vitest";
import { temporaryFolder } from "../support/temporary-folder.ts";

const COMMAND = resolve("src/commands/migrate-commit.ts");

let folder: string;

beforeEach(async () => {
  folder = await temporaryFolder();
  for (const name of ["migrations", ".gmrc"]) await cp(name, join(folder, name), { recursive: true });
});

const run = async (sql: string, ...args: string[]) => {
  await writeFile(join(folder, "migrations/current.sql"), sql);
  const before = await readdir(join(folder, "migrations/committed"));
  const { status, stderr } = spawnSync(process.execPath, [COMMAND, ...args], { cwd: folder, encoding: "utf8" });
  const after = await readdir(join(folder, "migrations/committed"));
  const current = await readFile(join(folder, "migrations/current.sql"), "utf8");
  return { status, stderr, added: after.filter((file) => !before.includes(file)), current: current.trim() };
};

test("what runs becomes the next migration, by its name, and nothing waits any more", async () => {
  const { status, added, current } = await run("ALTER TABLE tenants ADD COLUMN note_text TEXT;", "tenant-notes");
  expect({ status, current }).toEqual({ status: 0, current: "" });
  expect(added).toEqual([expect.stringMatching(/^\d{6}-tenant-notes\.sql$/)]);
});

test("what does not run waits on, and is not committed", async () => {
  const sql = "ALTER TABLE nowhere ADD COLUMN note_text TEXT;";
  const { status, added, current } = await run(sql, "nowhere");
  expect({ status, added, current }).toEqual({ status: 1, added: [], current: sql });
});

test.each([[], ["Two Words"], ["../up"]])(
  "without a name that a file can have, here %j, it says how to give one",
  async (...args) => {
    const { status, stderr, added } = await run("SELECT 1;", ...args);
    expect({ status, added }).toEqual({ status: 1, added: [] });
    expect(stderr).toContain("npm run migrate:commit -- tenant-notes");
  },
);
