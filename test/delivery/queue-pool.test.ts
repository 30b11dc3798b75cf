import { expect, onTestFinished, test } from "vitest";
import { parseConfig } from "../../src/config.ts";
import { openQueuePool } from "../../src/delivery/queue-pool.ts";
import { createLog } from "../../src/log.ts";
import { createEmptyDatabase } from "../support/database.ts";
import { startDatabaseProxy } from "../support/database-proxy.ts";

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

test("a connection whose statement the network swallowed is not used again, though it was given back as sound", async () => {
  const { url, drop } = await createEmptyDatabase();
  const proxy = await startDatabaseProxy(url);
  const { database: settings } = parseConfig({ DATABASE_STATEMENT_TIMEOUT: "100ms" });
  const pool = openQueuePool({ databaseUrl: proxy.url, settings, log: createLog("silent"), size: 1 });
  onTestFinished(async () => {
    await proxy.close();
    await pool.end();
    await drop();
  });
  const ask = async () => {
    const client = await pool.connect();
    try {
      await client.query("SELECT 1");
    } finally {
      client.release();
    }
  };
  await ask();
  proxy.swallowExisting();
  await expect(ask()).rejects.toThrow("timeout");
  await expect.poll(() => pool.totalCount).toBe(0);
  await ask();
});
