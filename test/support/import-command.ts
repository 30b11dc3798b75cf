import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { onTestFinished } from "vitest";
import { CHILD_ENV } from "./child-env.ts";
import type { TestService } from "./service.ts";
import { temporaryFolder } from "./temporary-folder.ts";

const COMMAND = fileURLToPath(new URL("../../src/commands/import.ts", import.meta.url));

/** What the command is run with, beside its server. */
export type Environment = Readonly<Record<string, string>>;

/** The command in a process of its own, away from the checkout, whose .env could name another server. */
export const startImport = (args: readonly string[], { grpcPort }: Pick<TestService, "grpcPort">, env: Environment) => {
  const child = spawn(process.execPath, [COMMAND, ...args], {
    cwd: "/",
    env: { ...CHILD_ENV, GRPC_HOST: "127.0.0.1", GRPC_PORT: String(grpcPort), ...env },
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  const out = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (text: string) => (out.stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (out.stderr += text));
  const finished = once(child, "close").then(([code]) => ({ code: code as number, ...out }));
  return { child, out, finished };
};

/** Its end, and what it said. */
export const runImport = (args: readonly string[], server: Pick<TestService, "grpcPort">, env: Environment) =>
  startImport(args, server, env).finished;

/** A file to import, of these lines. */
export const writeLines = async (lines: readonly (string | object)[]) => {
  const file = join(await temporaryFolder(), "people.ndjson");
  await writeFile(file, lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join(""));
  return file;
};

/** What the command has reported of each line. */
export const reportOf = async (file: string) => {
  const text = await readFile(`${file}.report`, "utf8");
  return text
    .trimEnd()
    .split("\n")
    .map(
      (line) =>
        JSON.parse(line) as { line: number; user_id?: string; status: string; reason?: string; detail?: string },
    );
};

/** As many whom nothing tells apart but a number. */
export const people = (count: number) =>
  Array.from({ length: count }, (_, n) => ({ email: `person${n}@example.com`, display_name: `Person ${n}` }));

/** The environment of who may import. */
export const importer = async (server: TestService) => {
  const { token } = await server.addService(["auth.user.import"]);
  return { SERVICE_TOKEN: token };
};
