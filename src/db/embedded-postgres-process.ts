import { once } from "node:events";
import { chmodSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { initCluster, runPostgres, type Running } from "./embedded-postgres-cluster.ts";
import { runAs, usableBinaries, type Binaries } from "./embedded-postgres-user.ts";
import type { EmbeddedPostgresAnswer, EmbeddedPostgresOrder } from "./embedded-postgres.ts";

/** How long an earlier start, whose parent was killed, may take to let the folder go. */
const LOCK_WAIT_MS = 2_000;
const SQLITE_BUSY = 5;
/** How long PostgreSQL may take to end in order before it is made to. */
const STOP_MS = 10_000;

// The lock of an SQLite file is the one lock of the operating system that Node offers: it ends with the process, however
// that ends, so it is never stale.
const lock = (home: string, dataDir: string): DatabaseSync => {
  const file = join(home, "lock");
  try {
    const database = new DatabaseSync(file, { timeout: LOCK_WAIT_MS });
    database.exec("BEGIN EXCLUSIVE");
    return database;
  } catch (error) {
    const { errcode, message } = error as Error & { readonly errcode?: number };
    const held = `another process already uses the embedded database in ${dataDir}`;
    throw new Error(errcode === SQLITE_BUSY ? held : `${file} cannot be locked: ${message}`, { cause: error });
  }
};

const stop = async ({ process: postgres, lifeLine }: Running, durable: boolean): Promise<void> => {
  const ended = postgres.exitCode === null && postgres.signalCode === null ? once(postgres, "exit") : undefined;
  // Data that nobody keeps needs no checkpoint.
  postgres.kill(durable ? "SIGINT" : "SIGQUIT");
  const force = setTimeout(() => postgres.kill("SIGQUIT"), STOP_MS);
  await ended;
  clearTimeout(force);
  lifeLine.destroy();
};

const answer = (value: EmbeddedPostgresAnswer): void => {
  if (process.connected) process.send?.(value);
};

const serve = async (
  { dataDir, durable, removeAtEnd }: EmbeddedPostgresOrder,
  parentGone: Promise<unknown>,
): Promise<void> => {
  let binaries: Binaries | undefined;
  try {
    const home = join(dataDir, "postgres");
    mkdirSync(home, { recursive: true });
    // PostgreSQL's user passes through and reads nothing here but what is its own.
    chmodSync(home, 0o711);
    using held = lock(home, dataDir);
    const user = runAs(join(home, "cluster"));
    binaries = await usableBinaries(user);
    const cluster = { home, durable, user, binaries };
    const password = await initCluster(cluster);
    const running = await runPostgres(cluster);
    answer({ url: `postgresql://postgres:${password}@127.0.0.1:${running.port}/postgres` });
    await Promise.race([parentGone, once(running.process, "exit")]);
    await stop(running, durable);
    if (removeAtEnd) rmSync(dataDir, { recursive: true, force: true });
    held.exec("ROLLBACK");
  } finally {
    if (binaries?.copy) rmSync(binaries.copy, { recursive: true, force: true });
  }
};

const parentGone = once(process, "disconnect");
// Whoever signals a whole group or service means the parent, which still needs the database while it drains.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => undefined);

const [order] = (await once(process, "message")) as [EmbeddedPostgresOrder];
try {
  await serve(order, parentGone);
} catch (error) {
  answer({ failure: error instanceof Error ? error.message : String(error) });
  process.exitCode = 1;
}
if (process.connected) process.disconnect();
