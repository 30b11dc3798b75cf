import { existsSync, readFileSync, statfsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sql } from "slonik";
import type { TestProject } from "vitest/node";
import { migrate } from "../../src/commands/migrate.ts";
import { parseConfig } from "../../src/config.ts";
import { startEmbeddedPostgres } from "../../src/db/embedded-postgres.ts";
import { jwtKeysFileOf } from "../../src/dev-keys.ts";
import { createLog } from "../../src/log.ts";
import { ROOTED, TEMPLATE, administer, databaseUrl } from "./admin.ts";
import { makeRoot } from "./root.ts";
import { rpcs } from "./rpcs.ts";
import { unprovoked } from "./unprovoked.ts";

declare module "vitest" {
  export interface ProvidedContext {
    /** The superuser's URL of the run's one PostgreSQL. */
    postgresUrl: string;
    /** Of `root` in databases that have it from the start. */
    rootSecret: string;
    /** The JWKS file of the run's servers. */
    jwtKeysFile: string;
    /** Where each process of the run notes what its calls were answered. */
    answersFile: string;
  }
}

const MEMORY = "/dev/shm";
const ROOM_BYTES = 4 * 2 ** 30;

/**
 * In memory where there is plenty. A test's database is a thousand files: to copy them takes 20 ms there, 150 on a disk, and
 * on ext4 nearly a second once others were dropped, for it passes over each inode that was freed in the last minutes.
 */
const folderOfRun = (): string => {
  if (!existsSync(MEMORY)) return tmpdir();
  const { bavail, bsize } = statfsSync(MEMORY);
  return bavail * bsize > ROOM_BYTES ? MEMORY : tmpdir();
};

const makeTemplates = async (postgresUrl: string): Promise<string> => {
  const [migrated, rooted] = [TEMPLATE, ROOTED].map((name) => databaseUrl(postgresUrl, name)) as [string, string];
  await administer(postgresUrl, sql.unsafe`CREATE DATABASE ${sql.identifier([TEMPLATE])}`);
  await migrate(migrated);
  const copy = sql.unsafe`CREATE DATABASE ${sql.identifier([ROOTED])} TEMPLATE ${sql.identifier([TEMPLATE])}`;
  await administer(postgresUrl, copy);
  const secret = await makeRoot(rooted);
  if (secret === undefined) throw new Error("a fresh database has a root already");
  return secret;
};

const CURRENT = "migrations/current.sql";

/** Tests would fail one by one, for want of what stands in the one or of a server, which does not start without the other. */
const refuseUnfinished = () => {
  if (readFileSync(CURRENT, "utf8").trim() !== "")
    throw new Error(`${CURRENT} is not committed: npm run migrate:commit`);
  const open = rpcs.filter(({ rule }) => rule.case === undefined).map(({ name }) => name);
  if (open.length > 0)
    throw new Error(`proto/ does not say who may call ${open.join(", ")}: each needs the option caller.v1.caller_rule`);
};

/** Whether every test of every file has run, and none has failed, which would be told first. */
const isWhole = async ({ vitest }: TestProject): Promise<boolean> => {
  const modules = vitest.state.getTestModules();
  const files = await vitest.globTestSpecifications();
  return !vitest.config.testNamePattern && modules.length === files.length && modules.every((module) => module.ok());
};

/** @throws where no test asked for what the protos promise. */
const refuseUnprovoked = async (project: TestProject, answersFile: string) => {
  if (!(await isWhole(project))) return;
  const missed = unprovoked(new Set((await readFile(answersFile, "utf8")).split("\n")));
  if (missed.length > 0) throw new Error(`no test has provoked ${missed.join(", ")}`);
};

/** One PostgreSQL for the whole run, with migrated databases that tests copy. */
export default async (project: TestProject) => {
  const { provide } = project;
  refuseUnfinished();
  const dataDir = await mkdtemp(join(folderOfRun(), "auth-service-test-"));
  const postgres = await startEmbeddedPostgres({ dataDir, durable: false, removeAtEnd: true });
  try {
    provide("rootSecret", await makeTemplates(postgres.url));
  } catch (error) {
    await postgres.stop();
    throw error;
  }
  const runDir = await mkdtemp(join(tmpdir(), "auth-service-run-"));
  const answersFile = join(runDir, "answers");
  await writeFile(answersFile, "");
  provide("postgresUrl", postgres.url);
  provide("answersFile", answersFile);
  provide("jwtKeysFile", await jwtKeysFileOf(parseConfig({ DATA_DIR: runDir }), createLog("silent")));
  return async () => {
    await postgres.stop();
    try {
      await refuseUnprovoked(project, answersFile);
    } finally {
      await rm(runDir, { recursive: true });
    }
  };
};
