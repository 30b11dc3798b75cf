import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmod, cp, readFile, readdir, stat, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { beforeEach, expect, onTestFinished, test, vi } from "vitest";
import { temporaryFolder } from "../support/temporary-folder.ts";

const COMMAND = resolve("src/commands/migrate-commit.ts");

let folder: string;

beforeEach(async () => {
  folder = await temporaryFolder();
  for (const name of ["migrations", ".gmrc"]) await cp(name, join(folder, name), { recursive: true });
});

const CURRENT = "migrations/current.sql";

const run = async (sql: string, ...args: string[]) => {
  await writeFile(join(folder, CURRENT), sql);
  const before = await readdir(join(folder, "migrations/committed"));
  const { status, stderr } = spawnSync(process.execPath, [COMMAND, ...args], { cwd: folder, encoding: "utf8" });
  const after = await readdir(join(folder, "migrations/committed"));
  const current = await readFile(join(folder, CURRENT), "utf8");
  return { status, stderr, added: after.filter((file) => !before.includes(file)), current: current.trim() };
};

test("what runs becomes the next migration, by its name, for everybody to read, and nothing waits any more", async () => {
  const { status, added, current } = await run("ALTER TABLE tenants ADD COLUMN note_text TEXT;", "tenant-notes");
  expect({ status, current }).toEqual({ status: 0, current: "" });
  expect(added).toEqual([expect.stringMatching(/^\d{6}-tenant-notes\.sql$/)]);
  // A container's user too.
  const { mode } = await stat(join(folder, "migrations/committed", added[0] ?? ""));
  expect(mode & 0o444).toBe(0o444);
});

test("it has a database of its own, whatever the environment says of others", async () => {
  vi.stubEnv("PGSSLMODE", "require");
  vi.stubEnv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere");
  onTestFinished(() => void vi.unstubAllEnvs());
  expect(await run("SELECT 1;", "nothing")).toMatchObject({ status: 0 });
});

test("what is interrupted waits on, and is not committed", async () => {
  const sql = "SELECT pg_sleep(60);";
  await writeFile(join(folder, CURRENT), sql);
  const committed = join(folder, "migrations/committed");
  const before = await readdir(committed);
  // As a terminal interrupts: all of them at once.
  const command = spawn(process.execPath, [COMMAND, "asleep"], { cwd: folder, detached: true });
  const ended = once(command, "exit");
  let said = "";
  for await (const text of command.stdout.setEncoding("utf8")) {
    said += String(text);
    if (said.includes("New migration")) process.kill(-(command.pid ?? 0), "SIGINT");
  }
  expect(await ended).toEqual([null, "SIGINT"]);
  expect({ files: await readdir(committed), current: await readFile(join(folder, CURRENT), "utf8") }).toEqual({
    files: before,
    current: sql,
  });
});

test.each([
  ["current.sql has changed", CURRENT, "SELECT 2;"],
  ["another run has committed", "migrations/committed/999999-other.sql", "SELECT 3;"],
])("nothing is committed where meanwhile %s", async (_what, file, sql) => {
  const waiting = "SELECT pg_sleep(0.5);";
  await writeFile(join(folder, CURRENT), waiting);
  const before = await readdir(join(folder, "migrations/committed"));
  const command = spawn(process.execPath, [COMMAND, "asleep"], { cwd: folder });
  const ended = once(command, "exit");
  let said = "";
  for await (const text of command.stdout.setEncoding("utf8")) {
    said += String(text);
    if (said.includes("New migration")) await writeFile(join(folder, file), sql);
  }
  expect(await ended).toEqual([1, null]);
  const after = await readdir(join(folder, "migrations/committed"));
  expect(after.filter((each) => !before.includes(each) && !file.endsWith(each))).toEqual([]);
  expect(await readFile(join(folder, CURRENT), "utf8")).toBe(file === CURRENT ? sql : waiting);
});

test("what does not run waits on, and is not committed", async () => {
  const sql = "ALTER TABLE nowhere ADD COLUMN note_text TEXT;";
  const { status, added, current } = await run(sql, "nowhere");
  expect({ status, added, current }).toEqual({ status: 1, added: [], current: sql });
});

/** Root may write to all but what is immutable, which not each file system has. @returns whether it is closed now. */
const closeToWriters = async (file: string): Promise<boolean> => {
  await chmod(file, 0o444);
  if (process.getuid?.() !== 0) return true;
  onTestFinished(() => void spawnSync("chattr", ["-i", file]));
  return spawnSync("chattr", ["+i", file]).status === 0;
};

test("where current.sql cannot be emptied nothing is committed", async ({ skip }) => {
  const sql = "SELECT 1;";
  await writeFile(join(folder, CURRENT), sql);
  if (!(await closeToWriters(join(folder, CURRENT)))) skip();
  const before = await readdir(join(folder, "migrations/committed"));
  const { status, stderr } = spawnSync(process.execPath, [COMMAND, "nothing"], { cwd: folder, encoding: "utf8" });
  expect(status).toBe(1);
  expect(stderr).toMatch(/^nothing is committed: E\w+: .*current\.sql'\n$/m);
  expect(await readdir(join(folder, "migrations/committed"))).toEqual(before);
  expect(await readFile(join(folder, CURRENT), "utf8")).toBe(sql);
});

test("away from the migrations it says in one line what it looked for", async () => {
  const cwd = await temporaryFolder();
  const { status, stderr } = spawnSync(process.execPath, [COMMAND, "notes"], { cwd, encoding: "utf8" });
  expect({ status, stderr }).toEqual({
    status: 1,
    stderr: expect.stringMatching(/^ENOENT: .*'migrations'\n$/) as string,
  });
});

test.each([[], ["Two Words"], ["../up"]])(
  "without a name that a file can have, here %j, it says how to give one",
  async (...args) => {
    const { status, stderr, added } = await run("SELECT 1;", ...args);
    expect({ status, added }).toEqual({ status: 1, added: [] });
    expect(stderr).toContain("npm run migrate:commit -- tenant-notes");
  },
);
