import { type QuerySqlToken, sql } from "slonik";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createLog } from "../../src/log.ts";
import { ARRIVAL, type Queue, type SentCode, createQueue } from "../support/deliveries.ts";
import { startDatabaseProxy } from "../support/database-proxy.ts";
import { untilSomebodyWaits } from "../support/lock-waiters.ts";
import { startMailServer } from "../support/mail-server.ts";
import { metric } from "../support/metrics.ts";
import { productionEnv } from "../support/production.ts";
import { serve } from "../support/serve.ts";
import { startTwilio } from "../support/twilio-server.ts";
import { eraseUser } from "../support/user-rows.ts";

const faults: unknown[] = [];
const onFault = (error: unknown) => faults.push(error);

beforeEach(() => void process.on("unhandledRejection", onFault).on("uncaughtException", onFault));
afterEach(() => {
  process.off("unhandledRejection", onFault).off("uncaughtException", onFault);
  expect(faults.splice(0)).toEqual([]);
});

const start = async () => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  return { queue, server };
};

const attempts = async (queue: Queue) => (await queue.jobs()).map((job) => job.attempts);

test("what fails is tried again, each time later, and arrives as one message", async () => {
  const { queue, server } = await start();
  server.refuse(451);
  await queue.launch({ SMTP_URL: server.url });
  const { otpId } = await queue.add();
  const delays: number[] = [];
  for (const attempt of [1, 2, 3]) {
    await expect
      .poll(async () => (await queue.jobs()).map((job) => [job.attempts, job.locked_by]), ARRIVAL)
      .toEqual([[attempt, null]]);
    delays.push((await queue.jobs())[0]?.delay_ms ?? 0);
    if (attempt === 3) server.refuse(undefined);
    await queue.hurry();
  }
  await expect.poll(() => server.mails.map(({ messageId }) => messageId), ARRIVAL).toEqual([`<${otpId}@example.org>`]);
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  // exp(1), exp(2) and exp(3) seconds, less what looking took.
  expect(delays.map((ms) => ms > 1_500 && ms < 21_000)).toEqual([true, true, true]);
  expect(delays.toSorted((a, b) => a - b)).toEqual(delays);
});

test("what failed for the last time is a dead letter, and is counted", async () => {
  const { queue, server } = await start();
  server.refuse(451);
  const service = await queue.launch({ SMTP_URL: server.url, DELIVERY_ATTEMPT_MAX: "2" });
  await queue.add();
  await expect.poll(() => attempts(queue), ARRIVAL).toEqual([1]);
  await queue.hurry();
  await expect
    .poll(async () => (await queue.jobs()).map((job) => job.attempts === job.max_attempts), ARRIVAL)
    .toEqual([true]);
  await queue.hurry();
  server.refuse(undefined);
  await queue.add();
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
  await expect.poll(async () => (await queue.jobs()).length, ARRIVAL).toBe(1);
  await expect.poll(() => metric(service, "delivery_dead_letters"), ARRIVAL).toBe(1);
  expect(await metric(service, "delivery_queue_length")).toBe(0);
  const outcome = (name: string) => metric(service, `delivery_messages_total{channel="email",outcome="${name}"}`);
  expect(await outcome("retried")).toBe(1);
  expect(await outcome("dead")).toBe(1);
  expect(await outcome("sent")).toBe(1);
});

test("what nobody is to have any more is not sent", async () => {
  const { queue, server } = await start();
  const change = async (statement: (code: SentCode) => QuerySqlToken) => {
    await queue.pool.query(statement(await queue.add()));
  };
  await change(({ otpId }) => sql.unsafe`UPDATE otp_codes SET consumed_utc = now() WHERE otp_id = ${otpId}`);
  await change(({ otpId }) => sql.unsafe`UPDATE otp_codes SET expiry_utc = now() WHERE otp_id = ${otpId}`);
  await change(({ otpId }) => sql.unsafe`UPDATE otp_codes SET attempt_count = attempt_max WHERE otp_id = ${otpId}`);
  await change(({ otpId }) => sql.unsafe`UPDATE otp_codes SET user_id = NULL WHERE otp_id = ${otpId}`);
  await change(({ userId }) => sql.unsafe`UPDATE users SET user_state_code = 'inactive' WHERE user_id = ${userId}`);
  await change(eraseUser);
  await change(({ otpId }) => sql.unsafe`DELETE FROM otp_codes WHERE otp_id = ${otpId}`);
  const service = await queue.launch({ SMTP_URL: server.url });
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  expect(server.given()).toBe(0);
  const dropped = (channel: string) =>
    metric(service, `delivery_messages_total{channel="${channel}",outcome="dropped"}`);
  expect([await dropped("email"), await dropped("unknown")]).toEqual([6, 1]);
});

test("of two codes for the same, only the newer is sent, and another tenant's ends neither", async () => {
  const { queue, server } = await start();
  const { tenantId, userId } = await queue.add({ destination: "ann@example.com" });
  const newer = await queue.add({ destination: "ann@example.com" });
  await queue.pool.query(sql.unsafe`UPDATE otp_codes SET tenant_id = ${tenantId}, user_id = ${userId}`);
  const others = await queue.add({ destination: "ann@example.com" });
  await queue.launch({ SMTP_URL: server.url });
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  const sent = [newer, others].map(({ otpId }) => `<${otpId}@example.org>`);
  expect(server.mails.map(({ messageId }) => messageId).sort()).toEqual(sent.sort());
});

test("of codes made at once the greater id is the newer, and one of another purpose ends none", async () => {
  const { queue, server } = await start();
  const destination = "ann@example.com";
  const { tenantId, userId } = await queue.add({ destination });
  const newer = await queue.add({ destination });
  const reset = await queue.add({ destination, purposeCode: "reset_password" });
  await queue.pool.query(sql.unsafe`
    UPDATE otp_codes SET tenant_id = ${tenantId}, user_id = ${userId}, created_utc = now()`);
  await queue.launch({ SMTP_URL: server.url });
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  const sent = [newer, reset].map(({ otpId }) => `<${otpId}@example.org>`);
  expect(server.mails.map(({ messageId }) => messageId).sort()).toEqual(sent.sort());
});

test("a code whose pepper is gone is not tried again, and one whose channel has no provider yet is", async () => {
  const { queue } = await start();
  const { otpId } = await queue.add();
  await queue.pool.query(sql.unsafe`
    UPDATE otp_codes SET code_hash_text = '999:' || split_part(code_hash_text, ':', 2) WHERE otp_id = ${otpId}`);
  await queue.add({ channelCode: "sms", destination: "+14155552671" });
  await queue.launch({ ...productionEnv(), SMTP_URL: "smtp://127.0.0.1:1" });
  const ends = async () =>
    (await queue.jobs()).map((job) => [job.last_error, job.attempts === job.max_attempts] as const);
  await expect.poll(ends, ARRIVAL).toEqual([
    ["its pepper is no longer configured", true],
    ["no provider is configured for its channel", false],
  ]);
});

test("no job, error or log has the code or the destination", async () => {
  const { queue, server } = await start();
  const lines: string[] = [];
  const log = createLog("trace", { write: (line: string) => void lines.push(line) });
  server.refuse(550);
  const { otpId, code } = await queue.add({ destination: "ann.secret@example.com" });
  const waiting = await queue.jobs();
  expect(waiting.map(({ payload }) => JSON.parse(payload) as unknown)).toEqual([{ otp_id: otpId }]);
  await queue.launch({ SMTP_URL: server.url }, log);
  await expect.poll(async () => (await queue.jobs())[0]?.last_error, ARRIVAL).toBe("smtp EENVELOPE 550");
  server.refuse(undefined);
  const sent = await queue.add({ destination: "bob.secret@example.com" });
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
  await expect.poll(async () => (await queue.jobs()).length, ARRIVAL).toBe(1);
  const told = JSON.stringify([lines, await queue.jobs()]);
  expect(told).toContain("a message was not sent");
  for (const secret of [code, sent.code, "ann.secret", "bob.secret"]) expect(told).not.toContain(secret);
});

test("an outage while a message is being sent neither loses it nor sends it twice", async () => {
  const { queue, server } = await start();
  const proxy = await startDatabaseProxy(queue.url);
  const through = await serve(proxy.url, { SMTP_URL: server.url, MAIL_FROM: "no-reply@example.org" });
  try {
    const release = server.hold();
    await queue.add();
    await expect.poll(() => server.given(), ARRIVAL).toBe(1);
    await proxy.refuse();
    release();
    await expect.poll(() => through.readiness(), ARRIVAL).toBe("database unavailable");
    expect(await attempts(queue)).toEqual([1]);
    await proxy.pass();
    await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
    await queue.add();
    await expect.poll(() => server.mails.length, ARRIVAL).toBe(2);
    expect(server.given()).toBe(2);
  } finally {
    await through.stop();
    await proxy.close();
  }
});

test("what was sent is not sent again where the connection breaks that would have said so", async () => {
  const { queue, server } = await start();
  const lines: string[] = [];
  await queue.launch({ SMTP_URL: server.url }, createLog("warn", { write: (line: string) => void lines.push(line) }));
  const release = server.hold();
  await queue.add();
  await expect.poll(() => server.given(), ARRIVAL).toBe(1);
  await queue.pool.transaction(async (tx) => {
    await tx.query(sql.unsafe`SELECT FROM graphile_worker._private_jobs FOR UPDATE`);
    release();
    await untilSomebodyWaits(tx);
    await tx.query(sql.unsafe`
      SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE datname = current_database() AND wait_event_type = 'Lock'`);
  });
  await expect.poll(() => lines.join(""), ARRIVAL).toContain("the delivery's consumer ended and starts again");
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  expect(server.given()).toBe(1);
});

test.each([1, 4])("%i failures that cannot be written end the consumer alone, which starts again", async (count) => {
  const { queue, server } = await start();
  const proxy = await startDatabaseProxy(queue.url);
  const env = {
    SMTP_URL: server.url,
    MAIL_FROM: "no-reply@example.org",
    DELIVERY_TIMEOUT: "1s",
    DELIVERY_CONCURRENCY: "5",
    DATABASE_STATEMENT_TIMEOUT: "1s",
  };
  const lines: string[] = [];
  const through = await serve(proxy.url, env, createLog("warn", { write: (line: string) => void lines.push(line) }));
  try {
    const release = server.hold();
    for (let given = 1; given <= count; given++) {
      await queue.add();
      await expect.poll(() => server.given(), ARRIVAL).toBe(given);
    }
    await proxy.refuse();
    await expect.poll(() => lines.join(""), ARRIVAL).toContain("the delivery's consumer ended and starts again");
    release();
    await proxy.pass();
    await queue.add();
    await expect.poll(() => server.given(), ARRIVAL).toBeGreaterThan(count);
  } finally {
    await through.stop();
    await proxy.close();
  }
});

test("a consumer whose beginning failed starts again", async () => {
  const { queue, server } = await start();
  const rename = (from: string, to: string) =>
    queue.pool.query(
      sql.unsafe`ALTER TABLE graphile_worker.${sql.identifier([from])} RENAME TO ${sql.identifier([to])}`,
    );
  const lines: string[] = [];
  await rename("_private_tasks", "away");
  await queue.launch({ SMTP_URL: server.url }, createLog("debug", { write: (line: string) => void lines.push(line) }));
  await expect.poll(() => lines.join(""), ARRIVAL).toContain("Failed to acquire job");
  await rename("away", "_private_tasks");
  await queue.add();
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
});

test("however often the consumer has ended, it starts again about a second later", async () => {
  const { queue, server } = await start();
  const ends: number[] = [];
  const write = (line: string) => {
    if (line.includes("starts again")) ends.push(performance.now());
  };
  // The queue's own check at its beginning refuses a schema that a later release has changed.
  await queue.pool.query(sql.unsafe`INSERT INTO graphile_worker.migrations (id, breaking) VALUES (1000, true)`);
  await queue.launch({ SMTP_URL: server.url }, createLog("warn", { write }));
  await expect.poll(() => ends.length, ARRIVAL).toBeGreaterThan(3);
  const pauses = ends.slice(1).map((at, i) => at - (ends[i] ?? 0));
  expect(Math.max(...pauses)).toBeLessThan(3_000);
  await queue.pool.query(sql.unsafe`DELETE FROM graphile_worker.migrations WHERE id = 1000`);
  await queue.add();
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
});

test("a start while the database is away sends once it is there", async () => {
  const { queue, server } = await start();
  const proxy = await startDatabaseProxy(queue.url);
  await proxy.refuse();
  await queue.add();
  const through = await serve(proxy.url, { SMTP_URL: server.url, MAIL_FROM: "no-reply@example.org" });
  try {
    expect(through.readiness()).toBe("database unavailable");
    await proxy.pass();
    await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
  } finally {
    await through.stop();
    await proxy.close();
  }
});

test("a mail server that hangs does not delay what another provider sends", async () => {
  const { queue, server } = await start();
  const twilio = await startTwilio();
  const release = server.hold();
  await queue.launch({
    SMTP_URL: server.url,
    TWILIO_ACCOUNT_SID: `AC${"0".repeat(32)}`,
    TWILIO_AUTH_TOKEN: "token",
    TWILIO_FROM: "+14155550100",
    TWILIO_BASE_URL: twilio.url,
    DELIVERY_TIMEOUT: "60s",
  });
  await queue.addMany(20);
  await expect.poll(() => server.given(), ARRIVAL).toBe(4);
  await queue.add({ channelCode: "sms", destination: "+14155552671" });
  await expect.poll(() => twilio.requests.length, ARRIVAL).toBe(1);
  expect(server.given()).toBe(4);
  release();
});
