import { type DatabasePool, sql } from "slonik";
import { expect, onTestFinished, test } from "vitest";
import { z } from "zod";
import { freeLostJobs, startHeartbeat } from "../../src/delivery/workers.ts";
import { createLog } from "../../src/log.ts";
import { detached } from "../../src/rpc/call.ts";
import { ARRIVAL, MAIL_FROM, createQueue } from "../support/deliveries.ts";
import { startDatabaseProxy } from "../support/database-proxy.ts";
import { loggedLines } from "../support/logged-lines.ts";
import { startMailServer } from "../support/mail-server.ts";
import { openFor } from "../support/open-database.ts";
import { startProcess } from "../support/server-process.ts";
import { startSilentServer } from "../support/silent-server.ts";

const workers = (pool: DatabasePool) =>
  pool.anyFirst(sql.type(z.object({ worker_id: z.string() }))`SELECT worker_id FROM delivery_workers`);

test("what a killed replica was sending arrives from another, once", async () => {
  const [queue, silent, server] = await Promise.all([createQueue(), startSilentServer(), startMailServer()]);
  const { otpId } = await queue.add();
  const env = {
    SMTP_URL: `smtp://127.0.0.1:${silent.port}`,
    MAIL_FROM,
    DELIVERY_TIMEOUT: "1m",
    DELIVERY_ATTEMPT_MAX: "1",
  };
  const killed = await startProcess(queue.url, env);
  await expect.poll(() => silent.sockets.length, ARRIVAL).toBe(1);
  killed.process.kill("SIGKILL");
  await killed.exit;
  const [held] = await queue.jobs();
  expect(await workers(queue.pool)).toEqual([held?.locked_by]);

  const db = openFor(queue.url);
  expect(await freeLostJobs(db, detached())).toBe(0);
  await queue.pool.query(sql.unsafe`UPDATE delivery_workers SET seen_utc = now() - interval '14 seconds'`);
  expect(await freeLostJobs(db, detached())).toBe(0);
  await queue.pool.query(sql.unsafe`UPDATE delivery_workers SET seen_utc = now() - interval '16 seconds'`);

  await queue.launch({ SMTP_URL: server.url, DELIVERY_ATTEMPT_MAX: "1" });
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  expect(server.mails.map(({ messageId }) => messageId)).toEqual([`<${otpId}@example.org>`]);
});

test("what a worker held that was killed before its first beat is freed too, by one of many", async () => {
  const queue = await createQueue();
  await queue.addMany(3);
  await queue.pool.query(sql.unsafe`
    UPDATE graphile_worker._private_jobs
    SET locked_by = 'pool-lost', locked_at = now() - interval '16 seconds', attempts = max_attempts`);
  const db = openFor(queue.url);
  const freed = await Promise.all(Array.from({ length: 20 }, () => freeLostJobs(db, detached())));
  expect(freed.toSorted()).toEqual([...Array<number>(19).fill(0), 3]);
  for (const { locked_by, attempts, max_attempts } of await queue.jobs())
    expect([locked_by, attempts]).toEqual([null, max_attempts - 1]);
  expect(await workers(queue.pool)).toEqual([]);
});

test("what a living replica was given and not told of is freed, and what it is sending is not", async () => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  const release = server.hold();
  const sending = await queue.add();
  await queue.launch({ SMTP_URL: server.url, DELIVERY_TIMEOUT: "1m", DELIVERY_ATTEMPT_MAX: "1" });
  await expect.poll(() => server.given(), ARRIVAL).toBe(1);
  await queue.pool.query(sql.unsafe`
    UPDATE graphile_worker._private_jobs SET locked_at = now() - interval '16 seconds'`);
  // As the database locks a job, and the network loses its answer.
  const unheard = await queue.addGiven("16 seconds");
  await expect.poll(() => server.given(), ARRIVAL).toBe(2);
  release();
  await expect.poll(() => queue.jobs(), ARRIVAL).toEqual([]);
  expect(server.mails.map(({ messageId }) => messageId).toSorted()).toEqual(
    [sending, unheard].map(({ otpId }) => `<${otpId}@example.org>`).toSorted(),
  );
});

test("a hundred messages that were sent at once ask the database once or twice whether it answers", async () => {
  const queue = await createQueue();
  const proxy = await startDatabaseProxy(queue.url);
  onTestFinished(() => proxy.close());
  const db = openFor(proxy.url, { DATABASE_POOL_MAX: "2" });
  const given = { freeUnheard: () => Promise.resolve(0), isDone: () => false };
  const heart = startHeartbeat({ db, log: createLog("silent"), workerId: "pool-busy", given });
  const { signal } = new AbortController();
  await heart.answered(signal);
  const beats = () => proxy.sent().split("INTO delivery_workers AS w (worker_id, seen_utc) VALUES").length - 1;
  const before = beats();
  await Promise.all(Array.from({ length: 100 }, () => heart.answered(signal)));
  expect(beats() - before).toBeLessThanOrEqual(2);
  await heart.end();
});

test("two replicas send 200 messages, each exactly once", async () => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  const env = { SMTP_URL: server.url, DELIVERY_TIMEOUT: "10s" };
  await Promise.all([queue.launch(env), queue.launch(env)]);
  const ids = await queue.addMany(200);
  await expect.poll(() => queue.jobs(), { ...ARRIVAL, timeout: 30_000 }).toEqual([]);
  expect(server.mails.map(({ messageId }) => messageId).toSorted()).toEqual(
    ids.map((id) => `<${id}@example.org>`).toSorted(),
  );
});

test("a stop lets a message under way end, and leaves nothing behind", async () => {
  const [queue, server] = await Promise.all([createQueue(), startMailServer()]);
  const service = await queue.launch({ SMTP_URL: server.url, DELIVERY_TIMEOUT: "10s" });
  const release = server.hold();
  await queue.add();
  await expect.poll(() => server.given(), ARRIVAL).toBe(1);
  const stopped = service.stop();
  await expect.poll(() => service.readiness(), ARRIVAL).toBe("shutting down");
  expect(server.mails).toEqual([]);
  release();
  await stopped;
  expect(server.mails.length).toBe(1);
  expect(await queue.jobs()).toEqual([]);
  expect(await workers(queue.pool)).toEqual([]);
});

test("what does not end within SHUTDOWN_GRACE is free for others at once, as if it had not been tried", async () => {
  const [queue, silent, server] = await Promise.all([createQueue(), startSilentServer(), startMailServer()]);
  const env = {
    SMTP_URL: `smtp://127.0.0.1:${silent.port}`,
    DELIVERY_TIMEOUT: "1m",
    DELIVERY_ATTEMPT_MAX: "1",
    SHUTDOWN_GRACE: "300ms",
  };
  const logged = loggedLines();
  const service = await queue.launch(env, logged.log);
  await queue.add();
  await expect.poll(() => silent.sockets.length, ARRIVAL).toBe(1);
  const began = performance.now();
  await service.stop();
  expect(performance.now() - began).toBeLessThan(3_000);
  await expect.poll(() => silent.sockets.map(({ destroyed }) => destroyed), ARRIVAL).toEqual([true]);
  const [job] = await queue.jobs();
  expect(job).toMatchObject({ attempts: 0, locked_by: null, last_error: null });
  expect(job?.delay_ms).toBeLessThanOrEqual(0);
  expect(logged.all).not.toContainEqual(expect.objectContaining({ msg: "a message was not sent" }));
  await queue.launch({ SMTP_URL: server.url });
  await expect.poll(() => server.mails.length, ARRIVAL).toBe(1);
});
