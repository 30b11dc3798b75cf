import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { CHILD_ENV } from "./child-env.ts";

interface Finished {
  /** The exit code; null where a signal ended it. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command of `src/commands` in a process of its own, away from the checkout, whose .env could name another server. */
export const runCommand = (
  command: string,
  args: readonly string[] = [],
  variables: Readonly<Record<string, string>> = {},
  checkout = new URL("../../", import.meta.url),
): Promise<Finished> =>
  new Promise((resolve) => {
    const file = fileURLToPath(new URL(`src/commands/${command}.ts`, checkout));
    const options = { env: { ...CHILD_ENV, ...variables }, cwd: "/", timeout: 20_000 };
    const child = execFile(process.execPath, [file, ...args], options, (_error, stdout, stderr) => {
      resolve({ code: child.exitCode, stdout, stderr });
    });
  });
