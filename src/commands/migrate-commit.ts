import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, readdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startEmbeddedPostgres } from "../db/embedded-postgres.ts";

const COMMITTED = "migrations/committed";
/** graphile-migrate makes what it commits unreadable for others, such as the user of a container. */
const READABLE = 0o644;

const urlOf = (postgresUrl: string, database: string): string =>
  Object.assign(new URL(postgresUrl), { pathname: `/${database}` }).href;

/** Lets graphile-migrate commit `migrations/current.sql` of the working directory; answers with its exit code. */
const commit = async (postgresUrl: string, name: string): Promise<number | null> => {
  const urls = {
    DATABASE_URL: postgresUrl,
    SHADOW_DATABASE_URL: urlOf(postgresUrl, "shadow"),
    // By which the shadow is made; it must be another than the first.
    ROOT_DATABASE_URL: urlOf(postgresUrl, "template1"),
  };
  const child = spawn("graphile-migrate", ["commit", "--message", name], {
    env: { ...process.env, ...urls },
    stdio: "inherit",
  });
  const [code] = (await once(child, "exit")) as [number | null];
  return code;
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
    const code = await commit(postgres.url, name);
    for (const file of await readdir(COMMITTED)) await chmod(join(COMMITTED, file), READABLE);
    return code ?? 1;
  } finally {
    await postgres.stop();
  }
};

process.exitCode = await run(process.argv[2]);
