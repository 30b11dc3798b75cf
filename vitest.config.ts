import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

// The processes that tests start load in half of the time.
process.env["NODE_COMPILE_CACHE"] ??= fileURLToPath(new URL("node_modules/.cache/node", import.meta.url));

/** What watches its whole process: faults that nothing handles, timers, processor time, or OpenTelemetry's globals. */
const ALONE = [
  "test/auth/login-times.test.ts",
  "test/db/outages.test.ts",
  "test/delivery/retries.test.ts",
  "test/rpc/tls.test.ts",
  "test/tracing-faults.test.ts",
  "test/tracing.test.ts",
];

const each = {
  pool: "forks",
  setupFiles: "test/support/setup.ts",
  testTimeout: 60_000,
  hookTimeout: 60_000,
  // A condition that comes is seen at once; how long it may take on a busy machine is no statement of a test.
  expect: { poll: { timeout: 10_000 } },
} as const;

export default defineConfig({
  test: {
    globalSetup: "test/support/global-setup.ts",
    // Two more than the cores of a small machine: with one more they wait for something in a sixth of the time, of 312 s.
    maxWorkers: Math.max(4, availableParallelism() - 1),
    projects: [
      { test: { ...each, name: "alone", include: ALONE } },
      {
        test: {
          ...each,
          name: "together",
          include: ["test/**/*.test.ts"],
          exclude: ALONE,
          // Loading what a server is made of, and running it until it is compiled, is a third of a run in processes of their own.
          isolate: false,
        },
      },
    ],
  },
});
