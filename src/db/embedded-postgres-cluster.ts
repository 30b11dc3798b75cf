import { spawn, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { chownSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Binaries, type RunAs, alive } from "./embedded-postgres-user.ts";

/** macOS has no C.UTF-8; its en_US.UTF-8 sorts by bytes as well. */
const LOCALE = process.platform === "darwin" ? "en_US.UTF-8" : "C.UTF-8";
const PORT_TRIES = 5;
/** How long a PostgreSQL that outlived its parents may take to end. */
const LEFTOVER_MS = 10_000;

// As root, PostgreSQL runs as another user, whom a parent such as /root stops from walking to the folder. Its working
// directory needs no walk, and PostgreSQL never leaves it.
const folderFor = (user: RunAs, folder: string) =>
  user.uid !== undefined && process.platform === "linux" ? "/proc/self/cwd" : folder;

const own = (path: string, { uid, gid }: RunAs) => {
  if (uid !== undefined && gid !== undefined) chownSync(path, uid, gid);
};

interface Cluster {
  readonly home: string;
  readonly durable: boolean;
  readonly user: RunAs;
  readonly binaries: Binaries;
}

const run = (cluster: Cluster, command: string, args: readonly string[], cwd: string): ChildProcess =>
  spawn(command, args, {
    ...cluster.user,
    cwd,
    env: { PATH: process.env["PATH"], TZ: "UTC" },
    // The fourth is the life line that the watchdog below reads.
    stdio: ["ignore", "ignore", "pipe", "pipe"],
  });

/** The last lines a process wrote: what an error quotes. */
const lastLines = (process: ChildProcess, onText?: (text: string) => void) => {
  let tail = "";
  process.stderr?.setEncoding("utf8").on("data", (text: string) => {
    tail = (tail + text).slice(-2_000);
    onText?.(tail);
  });
  return () => tail.trim().split("\n").slice(-5).join("\n");
};

/** Makes the cluster where there is none, and answers the password of its superuser. */
export const initCluster = async (cluster: Cluster): Promise<string> => {
  const { home, user, durable, binaries } = cluster;
  const ready = join(home, "cluster");
  const passwordFile = join(home, "password");
  if (existsSync(ready)) return readFileSync(passwordFile, "utf8").trim();
  // Renamed when it is whole, so that a start that was cut short leaves nothing which looks like a cluster.
  const draft = join(home, "cluster.draft");
  rmSync(draft, { recursive: true, force: true });
  rmSync(passwordFile, { force: true });
  const password = randomBytes(24).toString("base64url");
  writeFileSync(passwordFile, `${password}\n`, { mode: 0o600, flag: "wx" });
  mkdirSync(draft, { mode: 0o700 });
  own(draft, user);
  own(passwordFile, user);
  const initdb = run(
    cluster,
    binaries.initdb,
    [
      `--pgdata=${folderFor(user, draft)}`,
      "--pwfile=../password",
      "--username=postgres",
      "--auth=scram-sha-256",
      // Repeating the hash slows the guessing of what people think up; of 192 random bits it slows only our own connecting.
      "--set=scram_iterations=1",
      "--encoding=UTF8",
      `--locale=${LOCALE}`,
      "--lc-messages=C",
      ...(durable ? [] : ["--no-sync"]),
    ],
    draft,
  );
  const said = lastLines(initdb);
  const [code] = (await once(initdb, "close")) as [number | null];
  if (code !== 0) throw new Error(`initdb failed: ${said()}`);
  renameSync(draft, ready);
  return password;
};

const freePort = async (): Promise<number> => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
};

/** By its program alone: others have arguments that name a postgres, and one of them is our own parent. */
const isPostgres = (pid: number): boolean => {
  try {
    return /^(?:[^\0]*\/)?postgres\0/.test(readFileSync(`/proc/${pid}/cmdline`, "utf8"));
  } catch {
    return process.platform !== "linux";
  }
};

/**
 * Deals with the pid file of a PostgreSQL that did not end in order. PostgreSQL itself sees through a dead process's, but
 * not through a process id that something else has since got, which is likely in a container that was started again.
 */
const clearPidFile = async (folder: string): Promise<void> => {
  const file = join(folder, "postmaster.pid");
  if (!existsSync(file)) return;
  const pid = Number.parseInt(readFileSync(file, "utf8"), 10);
  for (const until = Date.now() + LEFTOVER_MS; alive(pid) && isPostgres(pid); await sleep(50)) {
    if (Date.now() > until) throw new Error(`PostgreSQL of an earlier start still runs: end it by kill -INT ${pid}`);
  }
  if (alive(pid)) rmSync(file, { force: true });
};

// PostgreSQL ends in order when the life line closes, whichever of the processes above it was killed, and how.
const WATCHED = '( (read -r line <&3; kill -INT $$) 2>/dev/null & ); exec "$@" 3<&-';

const settings = (durable: boolean) => [
  "listen_addresses=127.0.0.1",
  "unix_socket_directories=",
  ...(durable ? [] : ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=300"]),
];

export interface Running {
  readonly process: ChildProcess;
  /** To be destroyed once the process has ended. */
  readonly lifeLine: Socket;
  readonly port: number;
}

/** Starts PostgreSQL on a free port and waits until it takes connections. */
export const runPostgres = async (cluster: Cluster): Promise<Running> => {
  const folder = join(cluster.home, "cluster");
  await clearPidFile(folder);
  for (let tries = 1; ; tries += 1) {
    const port = await freePort();
    const flags = settings(cluster.durable).flatMap((setting) => ["-c", setting]);
    const args = ["-D", folderFor(cluster.user, folder), "-p", String(port), ...flags];
    const postgres = run(cluster, "/bin/sh", ["-c", WATCHED, "sh", cluster.binaries.postgres, ...args], folder);
    const lifeLine = postgres.stdio[3] as Socket;
    const ready = Promise.withResolvers<boolean>();
    const said = lastLines(postgres, (text) => text.includes("ready to accept connections") && ready.resolve(true));
    const closed = once(postgres, "close");
    postgres.once("exit", () => ready.resolve(false));
    if (await ready.promise) return { process: postgres, lifeLine, port };
    // The watchdog holds the other end: until ours closes, the process's output stays open too.
    lifeLine.destroy();
    await closed;
    // Somebody may have taken the port since it was found free.
    if (tries === PORT_TRIES || !said().includes("could not bind")) {
      throw new Error(`PostgreSQL did not start: ${said()}`);
    }
  }
};
