import { setTimeout as sleep } from "node:timers/promises";
import { startEmbeddedPostgres } from "../../src/db/embedded-postgres.ts";
import { benchCheckAccess } from "./check-access.ts";
import { benchLoginTiming } from "./login-timing.ts";
import { benchLogins } from "./logins.ts";
import { benchPipeline } from "./pipeline.ts";
import { benchServiceTokens } from "./service-tokens.ts";
import { type BenchService, removeFolder, startBenchService, temporaryFolder } from "./service.ts";

const BENCHES: Readonly<Record<string, (service: BenchService) => Promise<void>>> = {
  pipeline: benchPipeline,
  "service-tokens": benchServiceTokens,
  logins: benchLogins,
  "login-timing": benchLoginTiming,
  "check-access": benchCheckAccess,
};

const REST_MS = 3_000;

/** `npm run bench [-- name …]`: figures of one run, to be compared with each other; nothing fails by time. */
const [...names] = process.argv.slice(2);
const folder = await temporaryFolder();
try {
  const first = await startBenchService(folder);
  await first.stop();
  const embedded = await startEmbeddedPostgres({ dataDir: folder });
  try {
    const service = await startBenchService(folder, { DATABASE_URL: embedded.url, THROTTLES: "off" });
    try {
      await sleep(REST_MS);
      console.table({
        "first start, with a new database of its own": { seconds: first.startSeconds.toFixed(2), target: "8" },
        "start on an existing database": { seconds: service.startSeconds.toFixed(2), target: "1" },
      });
      console.log(`memory at rest: ${(await service.residentMegabytes()).toFixed(0)} MB (target: 150)`);
      for (const [name, bench] of Object.entries(BENCHES)) {
        if (names.length === 0 || names.includes(name)) await bench(service);
      }
    } finally {
      await service.stop();
    }
  } finally {
    await embedded.stop();
  }
} finally {
  await removeFolder(folder);
}
