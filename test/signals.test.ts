import { spawn } from "node:child_process";
import { once } from "node:events";
import { expect, onTestFinished, test } from "vitest";
import { CHILD_ENV } from "./support/child-env.ts";
import { startDatabaseProxy } from "./support/database-proxy.ts";
import { createDatabase } from "./support/database.ts";
import { launchProcess, startProcess } from "./support/server-process.ts";

/** As the image starts it. */
const PRELOADED = { NODE_OPTIONS: "--import ./src/early-signals.ts" };
/** A server whose modules load for ever. */
const LOADING = "process.stdout.write('loading'); setInterval(() => undefined, 1_000);";

const databaseOf = async () => {
  const database = await createDatabase();
  onTestFinished(() => database.drop());
  return database;
};

test.each([
  ["SIGTERM", 143],
  ["SIGINT", 130],
] as const)("%s ends a server that still loads, with %i", async (signal, code) => {
  const env = { ...CHILD_ENV, ...PRELOADED };
  const child = spawn(process.execPath, ["--eval", LOADING], { env, stdio: ["ignore", "pipe", "inherit"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  await once(child.stdout, "data");
  child.kill(signal);
  expect(await once(child, "exit")).toEqual([code, null]);
});

test("once a server listens for signals, what ended it while it loaded does so no longer", async () => {
  const { url } = await databaseOf();
  const server = await startProcess(url, PRELOADED);
  server.process.kill("SIGTERM");
  expect(await server.exit).toBe(0);
});

test("a signal in the midst of a start is heeded once that is over", async () => {
  const proxy = await startDatabaseProxy((await databaseOf()).url);
  onTestFinished(() => proxy.close());
  proxy.swallowNew();
  const server = await launchProcess(proxy.url, {});
  await expect.poll(() => proxy.startups.length).toBeGreaterThan(0);
  server.process.kill("SIGTERM");
  expect(await server.exit).toBe(0);
  expect(server.said()).toContain('"msg":"shutting down"');
});
