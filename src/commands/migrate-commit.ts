import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startEmbeddedPostgres } from "../db/embedded-postgres.ts";
import { reportFailure } from "./run.ts";

const FOLDER = "migrations";
const COMMITTED = join(FOLDER, "committed");
const CURRENT = join(FOLDER, "current.sql");

/** Without what node-postgres would read of a connection to another database than ours. */
const environment = () => Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("PG")));

const urlOf = (postgresUrl: string, database: string): string =>
  Object.assign(new URL(postgresUrl), { pathname: `/${database}` }).href;

/** Lets graphile-migrate commit `migrations/current.sql` of this folder; answers with its exit code. */
const commit = async (cwd: string, postgresUrl: string, name: string): Promise<number | null> => {
  const urls = {
    DATABASE_URL: postgresUrl,
    SHADOW_DATABASE_URL: urlOf(postgresUrl, "shadow"),
    // By which the shadow is made; it must be another than the first.
    ROOT_DATABASE_URL: urlOf(postgresUrl, "template1"),
  };
  const child = spawn("graphile-migrate", ["commit", "--message", name], {
    cwd,
    env: { ...environment(), ...urls },
    stdio: "inherit",
  });
  const [code] = (await once(child, "exit")) as [number | null];
  return code;
};

/** Takes over what was committed in a copy. As files of ours: graphile-migrate's are unreadable for a container's user. */
const take = async (copy: string, known: readonly string[], sql: string): Promise<void> => {
  // Another run's migration has the number of this one; of what was written meanwhile nothing has run.
  if ((await readdir(COMMITTED)).length !== known.length || (await readFile(CURRENT, "utf8")) !== sql)
    throw new Error("migrations changed meanwhile: nothing is committed, run it again");
  const added = (await readdir(join(copy, COMMITTED))).filter((file) => !known.includes(file));
  try {
    for (const file of added) await writeFile(join(COMMITTED, file), await readFile(join(copy, COMMITTED, file)));
    await writeFile(CURRENT, "");
  } catch (error) {
    for (const file of added) await rm(join(COMMITTED, file), { force: true });
    throw new Error(`nothing is committed: ${(error as Error).message}`, { cause: error });
  }
};

/** `npm run migrate:commit -- <name>`: on a PostgreSQL that stands just for this, where all migrations are tried. */
const run = async (name: string | undefined): Promise<number> => {
  if (name === undefined || !/^[a-z0-9]+(-[a-z0-9]+)*$/.test(name)) {
    process.stderr.write("say what it does, in words joined by hyphens: npm run migrate:commit -- tenant-notes\n");
    return 1;
  }
  const dataDir = await mkdtemp(join(tmpdir(), "auth-service-commit-"));
  const postgres = await startEmbeddedPostgres({ dataDir, durable: false, removeAtEnd: true });
  try {
    // In a copy: cut short, graphile-migrate leaves a migration both committed and waiting.
    const copy = join(dataDir, "copy");
    for (const path of [FOLDER, ".gmrc"]) await cp(path, join(copy, path), { recursive: true });
    const known = await readdir(join(copy, COMMITTED));
    const sql = await readFile(join(copy, CURRENT), "utf8");
    const code = await commit(copy, postgres.url, name);
    if (code === 0) await take(copy, known, sql);
    return code ?? 1;
  } finally {
    await postgres.stop();
  }
};

await reportFailure(async () => {
  process.exitCode = await run(process.argv[2]);
});
