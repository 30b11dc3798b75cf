import { fork } from "node:child_process";
import { once } from "node:events";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "../config.ts";
import { verifiedTls } from "../db/connections.ts";
import type { MigrateAnswer, Migrated } from "../db/migrate-process.ts";
import { committedMigrations } from "../db/migrations.ts";
import { runCommand } from "./run.ts";

/** How long one waits for others that migrate the same database. */
const LOCK_WAIT_MS = 120_000;
const RETRY_MIN_MS = 50;
const RETRY_MAX_MS = 1_000;

const CHILD = fileURLToPath(new URL("../db/migrate-process.ts", import.meta.url));

// A process of its own, since graphile-migrate ends the process when it loses its connection. The URL goes over the
// channel: arguments and environments can be read by others.
const attempt = async (databaseUrl: string): Promise<MigrateAnswer> => {
  const child = fork(CHILD, { execArgv: [] });
  // Without a process there is no channel either.
  await once(child, "spawn");
  const exited = once(child, "exit");
  child.send(databaseUrl);
  const silent = exited.then(([code, signal]) => [
    { failure: `its process ended without a word, by ${code ?? signal}`, busy: false },
  ]);
  const [answer] = (await Promise.race([once(child, "message"), silent])) as [MigrateAnswer];
  await exited;
  return answer;
};

/**
 * Applies the committed migrations that the database lacks, then graphile-worker's own; any number may do so at once.
 *
 * @throws Error whose message is one line that says why, without the URL's password.
 */
export const migrate = async (databaseUrl: string): Promise<Migrated> => {
  const until = Date.now() + LOCK_WAIT_MS;
  for (let delayMs = RETRY_MIN_MS; ; delayMs = Math.min(delayMs * 2, RETRY_MAX_MS)) {
    const answer = await attempt(databaseUrl);
    if ("applied" in answer) return answer;
    if (!answer.busy || Date.now() > until)
      throw new Error(`cannot migrate: ${answer.failure.replaceAll(/\s+/g, " ")}`);
    // Not all at the same moment again.
    await sleep(delayMs * (0.5 + Math.random()));
  }
};

/**
 * The URL with what DATABASE_TLS says, in the words of node-postgres, which has nothing else to read it from: where neither
 * says anything it would heed PGSSLMODE, which the server does not.
 */
export const migrationUrl = (url: string, { tls, tlsCaFile }: Config["database"]): string => {
  const uri = new URL(url);
  if (tls === "off" || !uri.searchParams.has("sslmode")) uri.searchParams.set("sslmode", "disable");
  // It means the same by `require`, and would warn of it.
  if (tls === "verify" || uri.searchParams.get("sslmode") === "require") uri.searchParams.set("sslmode", "verify-full");
  if (tlsCaFile !== undefined) uri.searchParams.set("sslrootcert", resolve(tlsCaFile));
  return uri.toString();
};

const counted = (count: number, noun: string) => `${count} ${noun}${count === 1 ? "" : "s"}`;

const lineOf = ({ applied, queueSteps }: Migrated): string => {
  const done = [
    applied.length > 0 && `applied ${counted(applied.length, "migration")}: ${applied.join(", ")}`,
    queueSteps > 0 && `took ${counted(queueSteps, "step")} to the delivery queue's schema`,
  ].filter(Boolean);
  return done.join("; ") || `nothing to do: ${counted(committedMigrations().length, "migration")} already applied`;
};

/** `npm run migrate`: one line on stdout. */
if (import.meta.main) {
  await runCommand(async ({ database }) => {
    if (!database.url) throw new Error("DATABASE_URL is not set; the embedded database is migrated by `npm start`");
    // Where its file of authorities is of no use the driver names another cause, or none of ours.
    verifiedTls(database);
    process.stdout.write(`${lineOf(await migrate(migrationUrl(database.url, database)))}\n`);
  });
}
