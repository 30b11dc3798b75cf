import { type ParseArgsConfig, parseArgs } from "node:util";
import { type Config, ConfigError, loadConfig } from "../config.ts";
import { UNDEFINED_TABLE, sqlStateOf } from "../db/sql-state.ts";
import { Refusal } from "../rpc/refusal.ts";

// sysexits.h: EX_CONFIG.
const EXIT_CONFIG = 78;

/** Where a name leads to several addresses, none of which answers, every error around that one is empty, and it has a code alone. */
const innermost = (error: Error): string =>
  error.cause instanceof Error ? innermost(error.cause) : error.message || (error as NodeJS.ErrnoException).code || "";

const sentence = (error: unknown): string => {
  if (sqlStateOf(error) === UNDEFINED_TABLE) return "the database is not migrated: run `npm run migrate`";
  if (error instanceof Refusal && error.cause instanceof Error) return `${error.message}: ${innermost(error)}`;
  return error instanceof Error ? error.message : String(error);
};

/**
 * Says in one line that nothing can be written to stdout, such as a file on a full disk; a reader who has left wanted no more.
 * Instead of what a library does, which is to throw.
 */
export const watchStdout = (): void => {
  // Of a stderr that takes nothing nobody can be told, and the exit code is still to say what went wrong.
  process.stderr.on("error", () => undefined);
  process.stdout.removeAllListeners("error").on("error", ({ code }: NodeJS.ErrnoException) => {
    if (code === "EPIPE") return;
    process.stderr.write(`stdout cannot be written to: ${code}\n`);
    process.exitCode = 1;
  });
};

/** Does a command's work; what goes wrong is one message on stderr and an exit code. */
export const reportFailure = async (work: () => Promise<void>): Promise<void> => {
  watchStdout();
  try {
    await work();
  } catch (error) {
    process.stderr.write(`${sentence(error)}\n`);
    process.exitCode = error instanceof ConfigError ? EXIT_CONFIG : 1;
  }
};

/**
 * Runs a command with the configuration and its arguments, and reports its failure.
 * @param accepts the arguments that it takes: all others are refused, and nothing done.
 */
export const runCommand = <Accepts extends ParseArgsConfig>(
  command: (config: Config, args: ReturnType<typeof parseArgs<Accepts>>) => Promise<void>,
  accepts?: Accepts,
): Promise<void> =>
  reportFailure(async () => {
    const args = parseArgs(accepts as Accepts);
    await command(loadConfig(), args);
  });
