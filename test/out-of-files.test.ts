import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { CHILD_ENV } from "./support/child-env.ts";

const TRIES = fileURLToPath(new URL("support/out-of-files.ts", import.meta.url));
const PROCESSES = fileURLToPath(new URL("support/out-of-processes.ts", import.meta.url));

const withFewFiles = (script: string) =>
  promisify(execFile)("/bin/sh", ["-c", 'ulimit -n 64; exec "$0" "$1"', process.execPath, script], { env: CHILD_ENV });

interface Tried {
  readonly without: object;
  readonly again: object;
}

test("what loads modules when it is first used works once there are file descriptors again", async () => {
  const { stdout } = await withFewFiles(TRIES);
  const { without, again } = JSON.parse(stdout) as Tried;
  const tooMany = expect.stringContaining("too many open files") as unknown;
  expect(without).toEqual({ hash: tooMany, rule: tooMany, mail: "smtp ERR_INVALID_PACKAGE_CONFIG" });
  expect(again).toEqual({
    hash: expect.stringMatching(/^\$argon2id\$/) as unknown,
    rule: "PASSWORD_TOO_WEAK",
    mail: "smtp ESOCKET",
  });
});

test("a process that cannot be started is told of, and ends nobody else", async () => {
  const { stdout } = await withFewFiles(PROCESSES);
  const tooMany = expect.stringMatching(/^spawn \S+ EMFILE$/) as unknown;
  expect(JSON.parse(stdout)).toEqual([tooMany, tooMany]);
});
