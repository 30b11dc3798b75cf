import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { CHILD_ENV } from "./support/child-env.ts";

const TRIES = fileURLToPath(new URL("support/out-of-files.ts", import.meta.url));

interface Tried {
  readonly without: object;
  readonly again: object;
}

test("what loads modules when it is first used works once there are file descriptors again", async () => {
  const command = ["-c", 'ulimit -n 64; exec "$0" "$1"', process.execPath, TRIES];
  const { stdout } = await promisify(execFile)("/bin/sh", command, { env: CHILD_ENV });
  const { without, again } = JSON.parse(stdout) as Tried;
  const tooMany = expect.stringContaining("too many open files") as unknown;
  expect(without).toEqual({ hash: tooMany, rule: tooMany, mail: "smtp ERR_INVALID_PACKAGE_CONFIG" });
  expect(again).toEqual({
    hash: expect.stringMatching(/^\$argon2id\$/) as unknown,
    rule: "PASSWORD_TOO_WEAK",
    mail: "smtp ESOCKET",
  });
});
