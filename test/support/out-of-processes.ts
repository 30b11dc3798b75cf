import { closeSync, openSync } from "node:fs";
import { migrate } from "../../src/commands/migrate.ts";
import { startEmbeddedPostgres } from "../../src/db/embedded-postgres.ts";

// Starts what is a process of its own, without a file descriptor to be had for its channel.
const failure = (work: Promise<unknown>) => work.then(String, (error: unknown) => (error as Error).message);

const held: number[] = [];
try {
  for (;;) held.push(openSync("/dev/null", "r"));
} catch {
  // There are no more.
}
const failures = await Promise.all([
  failure(startEmbeddedPostgres({ dataDir: "/nowhere" })),
  failure(migrate("postgresql://127.0.0.1:1/nowhere")),
]);
for (const file of held) closeSync(file);
process.stdout.write(JSON.stringify(failures));
