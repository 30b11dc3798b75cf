import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, sep } from "node:path";
import { migrate } from "../../src/commands/migrate.ts";
import { startEmbeddedPostgres } from "../../src/db/embedded-postgres.ts";
import { lint } from "./lint.ts";
import { checkRowSchemas } from "./row-schemas.ts";

const root = join(import.meta.dirname, "../..");
const sources = join(root, "src") + sep;

const interrupted = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => interrupted.abort());

/** Lints everything, and holds each statement and its row schema against a database that stands just for this. */
const check = async (databaseUrl: string): Promise<boolean> => {
  await migrate(databaseUrl);
  interrupted.signal.throwIfAborted();
  const [linted, { findings, statements }] = await Promise.all([
    lint([root], databaseUrl, interrupted.signal),
    checkRowSchemas(databaseUrl, join(root, "tsconfig.json"), (file) => file.startsWith(sources)),
  ]);
  for (const { file, line, column, message } of [...linted, ...findings]) {
    console.log(`${file}:${String(line)}:${String(column)} ${message}`);
  }
  console.log(`${String(statements)} statements, ${String(linted.length + findings.length)} findings`);
  return linted.length + findings.length === 0;
};

const dataDir = await mkdtemp(join(tmpdir(), "auth-service-check-"));
try {
  const database = await startEmbeddedPostgres({ dataDir, durable: false });
  try {
    if (!(await check(database.url))) process.exitCode = 1;
  } finally {
    await database.stop();
  }
} catch (error) {
  if (!interrupted.signal.aborted) throw error;
  process.exitCode = 130;
} finally {
  await rm(dataDir, { recursive: true, force: true });
}
