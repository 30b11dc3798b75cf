import { expect, onTestFinished, test } from "vitest";
import { parseConfig } from "../../src/config.ts";
import { openQueuePool } from "../../src/delivery/queue-pool.ts";
import { createLog } from "../../src/log.ts";
import { createEmptyDatabase } from "../support/database.ts";

test("a connection that is given back twice, as where the queue ends while its LISTEN hangs, is given back once", async () => {
  const { url, drop } = await createEmptyDatabase();
  onTestFinished(drop);
  const pool = openQueuePool({
    databaseUrl: url,
    settings: parseConfig({}).database,
    log: createLog("silent"),
    size: 2,
  });
  const { promise, resolve } = Promise.withResolvers<() => void>();
  pool.connect((_error, _client, release) => resolve(release));
  const release = await promise;
  release();
  const taken = await pool.connect();
  release();
  expect(pool.idleCount).toBe(0);
  taken.release();
  await pool.end();
});
