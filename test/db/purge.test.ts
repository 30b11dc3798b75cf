import { sql } from "slonik";
import { expect, test } from "vitest";
import { z } from "zod";
import { openDatabase } from "../../src/db/pool.ts";
import { purge } from "../../src/db/purge.ts";
import { createLog } from "../../src/log.ts";
import { startService } from "../support/service.ts";

const DAY_MS = 86_400_000;
const ROWS = 2_500;

test("what ended longer ago than the retention goes, in batches and on two replicas at once; the rest stays", async () => {
  const { pool, databaseUrl, config, services, addService } = await startService("grpc");
  const { serviceId, token } = await addService([]);
  const endedDaysAgo = (days: number, rows: number) =>
    pool.query(sql.type(z.object({}))`
      INSERT INTO service_sessions (svc_session_id, svc_id, token_hash_text, expiry_utc)
      SELECT gen_random_uuid(), ${serviceId}::uuid, 'x', now() - ${days}::int * interval '1 day'
      FROM generate_series(1, ${rows}::int)`);
  await endedDaysAgo(31, ROWS);
  await endedDaysAgo(29, 3);
  const settings = { intervalMs: DAY_MS, sessionRetentionMs: 30 * DAY_MS };
  const replicas = [1, 2].map(() =>
    openDatabase({ url: databaseUrl, settings: config.database, log: createLog("silent") }),
  );
  const purged = await Promise.all(replicas.map((db) => purge(db, settings)));
  expect(purged.reduce((sum, rows) => sum + rows, 0)).toBe(ROWS);
  await Promise.all(replicas.map((db) => db.end()));
  const { sessions } = await services.listServiceSessions({ serviceId, includeEnded: true });
  expect(sessions).toHaveLength(4);
  expect((await services.verifyServiceToken({ serviceToken: token })).active).toBe(true);
});
