import { spawn } from "node:child_process";
import { once } from "node:events";
import { open, readFile } from "node:fs/promises";
import type { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { watchSigningKeys } from "../../src/auth/signing-keys.ts";
import { makeJwk } from "../../src/dev-keys.ts";
import { createLog } from "../../src/log.ts";
import { CHILD_ENV } from "../support/child-env.ts";
import { createKeysFile } from "../support/keys-file.ts";
import { runCommand } from "../support/run-command.ts";

const run = (...args: readonly string[]) => runCommand("signing-key", args);

/** As a server reads what was printed: which key signs, and which it publishes. */
const readAsServer = async (text: string) => {
  const keysFile = await createKeysFile();
  await keysFile.write(text);
  const keys = await watchSigningKeys({ file: keysFile.file, pollMs: 1_000_000, log: createLog("silent") });
  keys.close();
  const published = JSON.parse(keys.jwks()) as { readonly keys: readonly { readonly kid: string }[] };
  return { signing: keys.signing().kid, kids: published.keys.map(({ kid }) => kid) };
};

test("a file with one new key is printed, another one each time", async () => {
  const [one, other] = await Promise.all([run(), run()]);
  const { signing, kids } = await readAsServer(one.stdout);
  expect(kids).toEqual([signing]);
  expect((await readAsServer(other.stdout)).kids).not.toContain(signing);
  expect(one.stderr).toBe("");
});

test("the keys of a file are printed with a new one second, and the file is left alone", async () => {
  const [first, second] = [makeJwk(), makeJwk()];
  const { file } = await createKeysFile(first, second);
  const before = await readFile(file, "utf8");
  const { signing, kids } = await readAsServer((await run(file)).stdout);
  expect(signing).toBe(first.kid);
  expect(kids).toEqual([first.kid, expect.any(String), second.kid]);
  expect(await readFile(file, "utf8")).toBe(before);
});

test("a file that is none is named, and nothing of it is said", async () => {
  const [broken, empty] = await Promise.all([createKeysFile(), createKeysFile()]);
  await broken.write('{"keys":[{"d":"hunter2"}');
  await empty.write('{"keys":[]}');
  for (const file of [broken.file, empty.file, `${broken.file}.absent`]) {
    const stderr = `${file}: cannot be read, or is no JWKS\n`;
    expect(await run(file)).toEqual({ code: 1, stdout: "", stderr });
  }
});

test.skipIf(process.platform !== "linux")("a stdout that takes nothing is told of in one line", async () => {
  const command = fileURLToPath(new URL("../../src/commands/signing-key.ts", import.meta.url));
  const full = await open("/dev/full", "w");
  const child = spawn(process.execPath, [command], { env: CHILD_ENV, stdio: ["ignore", full.fd, "pipe"] });
  const [stderr] = await Promise.all([text(child.stderr as Readable), once(child, "exit"), full.close()]);
  expect({ code: child.exitCode, stderr }).toEqual({ code: 1, stderr: "stdout cannot be written to: ENOSPC\n" });
});
