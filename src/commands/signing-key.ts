import { readFile } from "node:fs/promises";
import { z } from "zod";
import { makeJwk } from "../dev-keys.ts";
import { watchStdout } from "./run.ts";

const keyFile = z.object({ keys: z.array(z.unknown()).min(1) });

const presentKeys = async (file: string) => keyFile.parse(JSON.parse(await readFile(file, "utf8"))).keys;

/**
 * `npm run --silent signing-key [-- FILE]`: a key file for `JWT_KEYS_FILE` on stdout, with a new key; that of FILE keeps
 * its keys, and the new one stands second, so that every replica knows it before it signs.
 */
watchStdout();
const [file] = process.argv.slice(2);
try {
  const [signing, ...others] = file === undefined ? [] : await presentKeys(file);
  const keys = signing === undefined ? [makeJwk()] : [signing, makeJwk(), ...others];
  process.stdout.write(`${JSON.stringify({ keys }, undefined, 2)}\n`);
} catch {
  // The parser's message quotes the text, which is a secret.
  process.stderr.write(`${file ?? ""}: cannot be read, or is no JWKS\n`);
  process.exitCode = 1;
}
