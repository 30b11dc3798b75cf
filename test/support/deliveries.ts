import { type DatabasePool, sql } from "slonik";
import { onTestFinished } from "vitest";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { type NewCode, deriveCode, hashNewCode, insertCode } from "../../src/auth/otp-codes.ts";
import { enqueueCode } from "../../src/delivery/queue.ts";
import type { Tx } from "../../src/db/transact.ts";
import { type Log, createLog } from "../../src/log.ts";
import { createMacs } from "../../src/macs.ts";
import { openPool } from "./admin.ts";
import { createDatabase } from "./database.ts";
import { type TestService, launchService } from "./service.ts";
import { PEPPERS } from "./root.ts";
import { temporaryFolder } from "./temporary-folder.ts";

/** What SMTP_URL is set with. */
export const MAIL_FROM = "Example <no-reply@example.org>";

const macs = createMacs(PEPPERS);

const jobRow = z.object({
  attempts: z.number(),
  max_attempts: z.number(),
  last_error: z.string().nullable(),
  locked_by: z.string().nullable(),
  delay_ms: z.number(),
  payload: z.string(),
});
type JobRow = z.output<typeof jobRow>;

interface Wanted extends Partial<Omit<NewCode, "otpId" | "hash">> {
  readonly label?: string;
}

export interface SentCode {
  readonly otpId: string;
  readonly code: string;
  readonly tenantId: string;
  readonly userId: string;
}

export interface Queue {
  readonly url: string;
  readonly pool: DatabasePool;
  /** A code of a new user, enqueued as a request for a code does it. */
  add(wanted?: Wanted): Promise<SentCode>;
  /** One that was given to the only worker so long ago, as PostgreSQL's `interval` has it. */
  addGiven(ago: string): Promise<SentCode>;
  /** Many of one user, in one transaction. */
  addMany(count: number): Promise<readonly string[]>;
  jobs(): Promise<readonly JobRow[]>;
  /** What waits for its next try need not wait. */
  hurry(): Promise<void>;
  launch(env?: Readonly<Record<string, string>>, log?: Log): Promise<TestService>;
}

const addUser = async (pool: DatabasePool, label: string) => {
  const [tenantId, userId] = [uuidv7(), uuidv7()];
  await pool.query(
    sql.unsafe`INSERT INTO tenants (tenant_id, tenant_label, tenant_state_code) VALUES (${tenantId}, ${label}, 'active')`,
  );
  await pool.query(sql.unsafe`
    INSERT INTO users (user_id, tenant_id, email_addr, user_state_code)
    VALUES (${userId}, ${tenantId}, ${`${userId}@example.com`}, 'active')`);
  return { tenantId, userId };
};

/** A queue in a database of the test's own; all that is launched on it stops with the test. */
export const createQueue = async (): Promise<Queue> => {
  const database = await createDatabase();
  const pool = await openPool(database.url, 2);
  onTestFinished(async () => {
    await pool.end();
    await database.drop();
  });
  const dataDir = await temporaryFolder();

  const newCode = (owner: { tenantId: string; userId: string }, wanted: Wanted = {}): NewCode => {
    const otpId = uuidv7();
    return {
      destination: `${owner.userId}@example.com`,
      channelCode: "email",
      purposeCode: "login",
      ttlMs: 300_000,
      attemptMax: 5,
      ...owner,
      ...wanted,
      otpId,
      hash: hashNewCode(macs, otpId),
    };
  };
  const enqueue = (codes: readonly NewCode[], alter?: (tx: Tx) => Promise<unknown>) =>
    pool.transaction(async (tx) => {
      for (const code of codes) {
        await tx.one(insertCode(code));
        await enqueueCode(tx, code.otpId, code.channelCode);
      }
      await alter?.(tx);
    });
  const addOne = async (wanted: Wanted, alter?: (tx: Tx) => Promise<unknown>) => {
    const owner = await addUser(pool, wanted.label ?? "Café Nord");
    const code = newCode(owner, wanted);
    await enqueue([code], alter);
    return { ...owner, otpId: code.otpId, code: deriveCode(macs, code.otpId, code.hash) ?? "" };
  };

  return {
    url: database.url,
    pool,
    add: (wanted = {}) => addOne(wanted),
    addGiven: (ago) =>
      addOne({}, (tx) =>
        tx.query(sql.unsafe`
          UPDATE graphile_worker._private_jobs j
          SET locked_by = w.worker_id, locked_at = now() - ${ago}::interval, attempts = 1
          FROM delivery_workers w WHERE j.locked_by IS NULL`),
      ),
    async addMany(count) {
      const owner = await addUser(pool, "Many");
      const codes = Array.from({ length: count }, (_, n) => newCode(owner, { destination: `${n}@example.com` }));
      await enqueue(codes);
      return codes.map(({ otpId }) => otpId);
    },
    jobs: () =>
      pool.any(sql.type(jobRow)`
        SELECT attempts, max_attempts, last_error, locked_by, payload::text AS payload,
          (extract(epoch FROM run_at - now()) * 1000)::float8 AS delay_ms
        FROM graphile_worker._private_jobs ORDER BY id`),
    async hurry() {
      await pool.query(sql.unsafe`UPDATE graphile_worker._private_jobs SET run_at = now()`);
    },
    async launch(env = {}, log = createLog("silent")) {
      const service = await launchService("grpc", {
        databaseUrl: database.url,
        env: {
          DATA_DIR: dataDir,
          DELIVERY_CONCURRENCY: "5",
          DELIVERY_TIMEOUT: "2s",
          ...(env["SMTP_URL"] && { MAIL_FROM }),
          ...env,
        },
        log,
      });
      onTestFinished(() => service.stop().catch(() => undefined));
      return service;
    },
  };
};

/** What arrives is polled for: by NOTIFY it comes at once, by polling within two seconds. */
export const ARRIVAL = { timeout: 10_000, interval: 20 } as const;
