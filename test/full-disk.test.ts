import { execFile } from "node:child_process";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { makeJwk } from "../src/dev-keys.ts";
import { CHILD_ENV } from "./support/child-env.ts";
import { PEPPER } from "./support/config.ts";
import { temporaryFolder } from "./support/temporary-folder.ts";

const MAIN = fileURLToPath(new URL("../src/main.ts", import.meta.url));

const OUTBOX = new URL("../src/delivery/outbox.ts", import.meta.url).href;

/** A process of Node that can write nothing into a file, as on a full disk. */
const runWithoutRoom = (args: readonly string[], dataDir: string, variables: Readonly<Record<string, string>> = {}) =>
  new Promise<{ code: unknown; stderr: string }>((resolve) => {
    const command = ["-c", `trap '' XFSZ; ulimit -f 0; exec "$0" "$@"`, process.execPath, ...args];
    const env = { ...CHILD_ENV, NODE_COMPILE_CACHE: undefined, DATA_DIR: dataDir, ...variables };
    execFile("/bin/sh", command, { cwd: dataDir, env, timeout: 20_000 }, (error, _stdout, stderr) => {
      resolve({ code: error?.code, stderr });
    });
  });

const startWithoutRoom = (dataDir: string, variables?: Readonly<Record<string, string>>) =>
  runWithoutRoom([MAIN], dataDir, variables);

const told = (fault: string) => ({ code: 78, stderr: `the configuration is not usable:\n  ${fault}\n` });

test("development that cannot write its keys says so, and leaves no half of them", async () => {
  const dataDir = await temporaryFolder();
  expect(await startWithoutRoom(dataDir)).toEqual(told("DATA_DIR cannot be written to: EFBIG"));
  expect(await readdir(dataDir)).toEqual([]);
});

test("keys that are there already need no room", async () => {
  const dataDir = await temporaryFolder();
  await writeFile(join(dataDir, "secret.peppers"), `1:${PEPPER}\n`);
  await writeFile(join(dataDir, "jwt-keys.json"), JSON.stringify({ keys: [makeJwk()] }));
  const variables = { DATABASE_URL: "postgresql://127.0.0.1:1/auth", TLS_CERT_FILE: "absent", TLS_KEY_FILE: "absent" };
  const { stderr } = await startWithoutRoom(dataDir, variables);
  expect(stderr).not.toContain("DATA_DIR");
  expect(stderr).toContain("TLS_CERT_FILE cannot be read: ENOENT");
});

test("peppers that cannot be read are named", async () => {
  const dataDir = await temporaryFolder();
  const file = join(dataDir, "secret.peppers");
  await mkdir(file);
  expect(await startWithoutRoom(dataDir)).toEqual(told(`${file} cannot be read: EISDIR`));
});

test("a message that has no room in the outbox leaves nothing of it there, however often it is tried", async () => {
  const folder = await temporaryFolder();
  const script = `
    import { createOutbox } from ${JSON.stringify(OUTBOX)};
    await createOutbox(".")({ otpId: "1", channel: "sms", purpose: "login", to: "+1", short: "012345" });`;
  const { code, stderr } = await runWithoutRoom(["--input-type=module", "--eval", script], folder);
  expect(code).toBe(1);
  expect(stderr).toContain("EFBIG");
  expect(await readdir(folder)).toEqual([]);
});
