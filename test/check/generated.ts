// Ends with 1 where src/gen is not what `npm run generate` makes of proto. It generates into a folder of its own, so
// that neither git's state nor a run beside it matters.
import { spawnSync } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

async function contents(folder: string): Promise<Map<string, string>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return new Map(
    await Promise.all(
      files.map(async (file) => [file.slice(folder.length + 1), await readFile(file, "utf8")] as const),
    ),
  );
}

const folder = await mkdtemp(join(tmpdir(), "generated-"));
try {
  const { status, error } = spawnSync("buf", ["generate", "--output", folder], { stdio: "inherit" });
  if (status !== 0) throw error ?? new Error(`buf generate ended with ${status}`);
  const fresh = await contents(join(folder, "src", "gen"));
  const committed = await contents(join("src", "gen"));
  const stale = [...new Set([...fresh.keys(), ...committed.keys()])].filter(
    (file) => fresh.get(file) !== committed.get(file),
  );
  for (const file of stale.sort()) console.error(`${join("src", "gen", file)} is not up to date: npm run generate`);
  if (stale.length > 0) process.exitCode = 1;
} finally {
  await rm(folder, { recursive: true });
}
