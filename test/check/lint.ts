import { execFile } from "node:child_process";
import { relative } from "node:path";
import type { ESLint } from "eslint";
import type { Finding } from "./statements.ts";

const eslint = new URL("../../node_modules/eslint/bin/eslint.js", import.meta.url).pathname;

/**
 * What ESLint finds, statements included, which it holds against the database.
 *
 * In a process of its own: it takes a processor for itself, and what checks the statements keeps its connections.
 * @param args files and options of the command line
 */
export const lint = async (args: readonly string[], databaseUrl: string, signal?: AbortSignal): Promise<Finding[]> => {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const options = {
    env: { ...process.env, CHECK_DATABASE_URL: databaseUrl },
    maxBuffer: 64 * 1024 * 1024,
    ...(signal && { signal }),
  };
  execFile(process.execPath, [eslint, "--format", "json", ...args], options, (error, stdout, stderr) => {
    // 1 says that there are findings; all else is a fault of ESLint or of its configuration.
    if (error && error.code !== 1) reject(new Error(`eslint: ${stderr || error.message}`, { cause: error }));
    else resolve(stdout);
  });
  const results = JSON.parse(await promise) as ESLint.LintResult[];
  return results.flatMap(({ filePath, messages }) =>
    messages.map(({ line, column, ruleId, message }) => ({
      file: relative(process.cwd(), filePath),
      line,
      column,
      message: `${message.split("\n", 1).join("")}${ruleId ? ` (${ruleId})` : ""}`,
    })),
  );
};
