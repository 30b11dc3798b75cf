import { execFileSync, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { sql } from "slonik";
import { expect, onTestFinished, test } from "vitest";
import { startEmbeddedPostgres } from "../../src/db/embedded-postgres.ts";
import { administer, withPool } from "../support/admin.ts";
import { definitions } from "../support/catalog.ts";
import { temporaryFolder } from "../support/temporary-folder.ts";

const HOLDER = fileURLToPath(new URL("../support/embedded-holder.ts", import.meta.url));

/** As closed as /root is: what PostgreSQL's user cannot walk through when root runs the tests. */
const closedFolder = async () => {
  const folder = await temporaryFolder();
  await chmod(folder, 0o700);
  return join(folder, "data");
};

const start = async (dataDir: string, durable = true) => {
  const postgres = await startEmbeddedPostgres({ dataDir, durable });
  onTestFinished(() => postgres.stop());
  return postgres;
};

const hold = async (dataDir: string) => {
  const child = fork(HOLDER, [dataDir], { execArgv: [] });
  onTestFinished(() => void child.kill("SIGKILL"));
  const [url] = (await once(child, "message")) as [string];
  return { child, url };
};

const pidFile = (dataDir: string) => join(dataDir, "postgres", "cluster", "postmaster.pid");
const postgresPid = async (dataDir: string) => Number.parseInt(await readFile(pidFile(dataDir), "utf8"), 10);
const tables = async (url: string) => [...(await definitions(url)).keys()].filter((thing) => thing.startsWith("table"));

test("data is there again after a restart, and the password is for its owner alone", async () => {
  const dataDir = await closedFolder();
  const first = await start(dataDir);
  await administer(first.url, sql.unsafe`CREATE TABLE kept (kept_id INT)`);
  await first.stop();
  await first.stop();
  const second = await start(dataDir);
  expect(await tables(second.url)).toEqual(["table kept"]);
  expect(new URL(second.url).hostname).toBe("127.0.0.1");
  expect((await stat(join(dataDir, "postgres", "password"))).mode & 0o777).toBe(0o600);
});

test("a folder in use is refused, and its user is not disturbed", async () => {
  const dataDir = await closedFolder();
  const first = await start(dataDir, false);
  await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(
    `another process already uses the embedded database in ${dataDir}`,
  );
  expect(await tables(first.url)).toEqual([]);
});

test.each([
  ["a folder", (file: string) => mkdir(file, { recursive: true }), "unable to open database file"],
  ["of another kind", (file: string) => writeFile(file, "no lock of ours"), "file is not a database"],
])("a lock that cannot be taken, here %s, is not said to be held", async (_what, make, why) => {
  const dataDir = await closedFolder();
  const home = join(dataDir, "postgres");
  await mkdir(home, { recursive: true });
  await make(join(home, "lock"));
  await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(`${join(home, "lock")} cannot be locked: ${why}`);
});

test("PostgreSQL ends when the process that started it is killed, and starts again on what it left", async () => {
  const dataDir = await closedFolder();
  const { child, url } = await hold(dataDir);
  await administer(url, sql.unsafe`CREATE TABLE kept (kept_id INT)`);
  const pid = await postgresPid(dataDir);
  child.kill("SIGKILL");
  // Waits for the lock, which is let go only once PostgreSQL has ended.
  const next = await start(dataDir);
  expect(() => process.kill(pid, 0)).toThrow("ESRCH");
  expect(await tables(next.url)).toEqual(["table kept"]);
});

test.runIf(process.platform === "linux")("PostgreSQL ends when its watching process is killed too", async () => {
  const dataDir = await closedFolder();
  const { child } = await hold(dataDir);
  const status = await readFile(`/proc/${await postgresPid(dataDir)}/status`, "utf8");
  const [, watcher] = /\nPPid:\t(\d+)/.exec(status) ?? [];
  child.kill("SIGKILL");
  process.kill(Number(watcher), "SIGKILL");
  // Nobody holds the lock any more; a start is refused for as long as the PostgreSQL of before runs.
  const next = await start(dataDir);
  expect(await tables(next.url)).toEqual([]);
});

test.each([
  ["another owner now", []],
  ["an owner now who only speaks of postgres", ["postgres://db", "/var/log/postgres"]],
])("the pid file of a crash does not stand in the way, even where its process id has %s", async (_owner, args) => {
  const dataDir = await closedFolder();
  const first = await start(dataDir, false);
  const left = await readFile(pidFile(dataDir), "utf8");
  await first.stop();
  const owner = spawn(process.execPath, ["-e", "process.stdin.resume()", ...args], {
    stdio: ["pipe", "ignore", "ignore"],
  });
  onTestFinished(() => void owner.kill());
  await once(owner, "spawn");
  await writeFile(pidFile(dataDir), left.replace(/^\d+/, String(owner.pid)));
  const second = await start(dataDir, false);
  expect(await tables(second.url)).toEqual([]);
});

test("what a start left that was cut short does not stand in the way", async () => {
  const dataDir = await closedFolder();
  const home = join(dataDir, "postgres");
  await mkdir(join(home, "cluster.draft"), { recursive: true });
  await writeFile(join(home, "cluster.draft", "PG_VERSION"), "9.6\n");
  await writeFile(join(home, "password"), "of no cluster\n");
  const { url } = await start(dataDir, false);
  expect(await tables(url)).toEqual([]);
});

test("it is reached on 127.0.0.1 by its password alone, and others pass through its folder and read nothing", async () => {
  const dataDir = await closedFolder();
  const { url } = await start(dataDir, false);
  const wrong = new URL(url);
  wrong.password = "wrong";
  await expect(tables(wrong.toString())).rejects.toMatchObject({ cause: { code: "28P01" } });
  const listening = await withPool(url, (pool) =>
    pool.one(sql.unsafe`
      SELECT current_setting('listen_addresses') AS addresses, current_setting('unix_socket_directories') AS sockets`),
  );
  expect(listening).toEqual({ addresses: "127.0.0.1", sockets: "" });
  expect((await stat(join(dataDir, "postgres"))).mode & 0o777).toBe(0o711);
});

test.runIf(process.getuid?.() === 0)("root runs it as the owner of what is there, but not as root", async () => {
  const dataDir = await closedFolder();
  const cluster = join(dataDir, "postgres", "cluster");
  const first = await start(dataDir);
  const { uid: postgres } = await stat(cluster);
  await administer(first.url, sql.unsafe`CREATE TABLE kept (kept_id INT)`);
  await first.stop();
  for (const [given, runs] of [
    [12345, 12345],
    // As a copy has it that keeps no owners.
    [0, postgres],
  ] as const) {
    execFileSync("chown", ["-R", `${given}:${given}`, cluster]);
    const next = await start(dataDir);
    expect(await tables(next.url)).toEqual(["table kept"]);
    expect((await stat(cluster)).uid).toBe(runs);
    await next.stop();
  }
});

test("a PostgreSQL that cannot start says why", async () => {
  const dataDir = await closedFolder();
  const first = await start(dataDir, false);
  await first.stop();
  await writeFile(join(dataDir, "postgres", "cluster", "PG_VERSION"), "9.6\n");
  await expect(startEmbeddedPostgres({ dataDir })).rejects.toThrow(/did not start: .*incompatible with server/s);
});

test("a folder that is to be removed goes with its PostgreSQL", async () => {
  const dataDir = await closedFolder();
  const postgres = await startEmbeddedPostgres({ dataDir, durable: false, removeAtEnd: true });
  await postgres.stop();
  await expect(stat(dataDir)).rejects.toThrow("ENOENT");
});
