import { create, toBinary } from "@bufbuild/protobuf";
import { Client } from "pg";
import { sql } from "slonik";
import { z } from "zod";
import { parseConfig } from "../../src/config.ts";
import { type Database, openDatabase } from "../../src/db/pool.ts";
import { read } from "../../src/db/transact.ts";
import { BatchCheckAccessRequestSchema, CheckAccessRequestSchema } from "../../src/gen/org/v1/org_pb.ts";
import { createLog } from "../../src/log.ts";
import { type AccessCheck, selectDecisions } from "../../src/org/access.ts";
import { detached } from "../../src/rpc/call.ts";
import { benchAccessPages } from "./access-pages.ts";
import { type AccessWorld, capabilityKey, childOf, heldBy, loadAccessWorlds, worldId } from "./access-world.ts";
import { type BenchService, measure, median } from "./service.ts";
import { keepCalling } from "./users.ts";

const SMALL: AccessWorld = { prefix: "018f00000001", nodes: 1_000, users: 100, assignments: 1_000 };
const LARGE: AccessWorld = { prefix: "018f00000002", nodes: 1_000_000, users: 100_000, assignments: 700_000 };

const ROUNDS = 5;
const SECONDS = 3;
const CONCURRENCY = 128;
const BATCH = 1_000;
const BATCHES_AT_ONCE = 2;
const CHECKS = 4_096;
const LONE_CALLS = 5_000;

// The same checks in every run (a linear congruential generator, Numerical Recipes' constants).
const numbers = (seed: number) => () => (seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0);

/** Every second one is of something held, mostly granted; the others are of anybody, anywhere. */
const checksOf = (
  world: AccessWorld,
  count: number,
  isHeavy: (index: number) => boolean = () => false,
): AccessCheck[] => {
  const next = numbers(count);
  return Array.from({ length: count }, (_, index) => {
    const held = heldBy(world, next() % world.assignments);
    const isHeld = index % 2 === 0;
    const node = isHeld ? childOf(world, held.node, next()) : next() % world.nodes;
    // Nobody else's check shall be of the user who has 20,000 assignments.
    const user = isHeavy(index) ? 0 : isHeld && held.user > 0 ? held.user : 1 + (next() % (world.users - 1));
    return {
      tenantId: worldId(world, "tenant", 0),
      userId: worldId(world, "user", user),
      nodeId: worldId(world, "node", node),
      capability: capabilityKey(isHeld ? held.capability : next()),
    };
  });
};

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");

const singles = (checks: readonly AccessCheck[]) => ({
  path: "/org.v1.OrgService/CheckAccess",
  messages: checks.map((check) => base64(toBinary(CheckAccessRequestSchema, create(CheckAccessRequestSchema, check)))),
});

const batches = (checks: readonly AccessCheck[]) => {
  const starts = Array.from({ length: checks.length / BATCH }, (_, index) => index * BATCH);
  const requests = starts.map((start) => {
    const asked = checks.slice(start, start + BATCH);
    return create(BatchCheckAccessRequestSchema, { tenantId: asked[0]?.tenantId ?? "", checks: asked });
  });
  return {
    path: "/org.v1.OrgService/BatchCheckAccess",
    messages: requests.map((request) => base64(toBinary(BatchCheckAccessRequestSchema, request))),
  };
};

const health = { path: "/grpc.health.v1.Health/Check", messages: [""], headers: {} };

/** Lone callers' rate, by the size of the tree and with one heavy user among 128, against the barest RPC, in turn. */
const benchRate = async (service: BenchService) => {
  const orders = {
    "health Check": health,
    "1,000 nodes": singles(checksOf(SMALL, CHECKS)),
    "1,000,000 nodes": singles(checksOf(LARGE, CHECKS)),
    "with a user of 20,000 assignments": singles(checksOf(LARGE, CHECKS, (index) => index % CONCURRENCY === 1)),
  };
  const rates: Record<string, number[]> = {};
  const cpu: Record<string, number[]> = {};
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, order] of Object.entries(orders)) {
      const measured = await measure(service, { ...order, concurrency: CONCURRENCY, seconds: SECONDS });
      if (measured.failures > 0) throw new Error(`${name}: ${measured.failures} calls failed`);
      (rates[name] ??= []).push(measured.perSecond);
      (cpu[name] ??= []).push(measured.cpuMicroseconds);
    }
  }
  const ratio = (name: string, to: string) =>
    median((rates[name] ?? []).map((rate, round) => rate / (rates[to]?.[round] ?? Number.NaN))).toFixed(3);
  const rows = Object.keys(orders).map((name) => [
    name,
    {
      "calls/s": Math.round(median(rates[name] ?? [])),
      "µs CPU of the service": median(cpu[name] ?? []).toFixed(1),
      "of health Check": ratio(name, "health Check"),
    },
  ]);
  console.table(Object.fromEntries(rows));
  console.log(`CheckAccess: ${ratio("1,000,000 nodes", "health Check")} of Check's rate (target: 0.9, at least 0.7)`);
  console.log(`1,000,000 nodes: ${ratio("1,000,000 nodes", "1,000 nodes")} of the rate at 1,000 (target: 0.9)`);
  const heavy = ratio("with a user of 20,000 assignments", "1,000,000 nodes");
  console.log(`with a user of 20,000 assignments: ${heavy} of the rate without (target: 0.9)`);
};

/** A statement as the bare driver takes it: slonik names the places of its values in its own way until it sends it. */
const plain = ({ sql: text, values }: ReturnType<typeof selectDecisions>) => ({
  text: text.replaceAll("$slonik_", "$"),
  values: [...values],
});

/** Batches over gRPC against the same statement by the bare driver, in turn. */
const benchBatches = async (service: BenchService, clients: readonly Client[]) => {
  const checks = checksOf(LARGE, BATCH * 8);
  const order = batches(checks);
  const statements = order.messages.map((_, index) =>
    plain(selectDecisions(checks.slice(index * BATCH, (index + 1) * BATCH))),
  );
  const rounds = [];
  for (let round = 0; round < ROUNDS; round++) {
    const bare = await keepCalling(BATCHES_AT_ONCE, SECONDS, (worker, count) => {
      const { text = "", values = [] } = statements[count % statements.length] ?? {};
      return clients[worker]?.query({ name: "bare", text, values }) ?? Promise.reject(new Error("no client"));
    });
    const whole = await measure(service, { ...order, concurrency: BATCHES_AT_ONCE, seconds: SECONDS });
    rounds.push({ bare, whole: whole.perSecond });
  }
  const ratio = median(rounds.map(({ bare, whole }) => whole / bare)).toFixed(3);
  const [bare, whole] = [median(rounds.map((one) => one.bare)), median(rounds.map((one) => one.whole))];
  console.log(
    `BatchCheckAccess of ${BATCH}: ${Math.round(whole * BATCH)} checks/s, ${ratio} of the bare statement's ` +
      `${Math.round(bare * BATCH)} (target: 0.9)`,
  );
};

const oneRow = z.object({ one: z.number() });

/** One caller alone, over gRPC, against the least that the pool can do. */
const benchLoneCheck = async (service: BenchService, db: Database) => {
  const bare: number[] = [];
  for (let call = 0; call < LONE_CALLS; call++) {
    const started = performance.now();
    await read(db, detached(), (connection) => connection.one(sql.type(oneRow)`SELECT 1 AS one`));
    bare.push(performance.now() - started);
  }
  const barePercentile = bare.sort((a, b) => a - b)[Math.floor(LONE_CALLS * 0.99)] ?? Number.NaN;
  const order = { ...singles(checksOf(LARGE, CHECKS)), connections: 1, concurrency: 1, seconds: SECONDS };
  const { p50Ms, p99Ms } = await measure(service, order);
  console.log(
    `a lone check: p50 ${p50Ms.toFixed(2)} ms, p99 ${p99Ms.toFixed(2)} ms, ` +
      `${(p99Ms / barePercentile).toFixed(2)} times SELECT 1 through the pool (target: at most 3)`,
  );
};

const printPlan = async (client: Client) => {
  const { text, values } = plain(selectDecisions(checksOf(LARGE, CONCURRENCY)));
  const { rows } = await client.query<{ "QUERY PLAN": string }>(
    `EXPLAIN (ANALYZE, COSTS OFF, BUFFERS OFF) ${text}`,
    values,
  );
  console.log(`the plan of ${CONCURRENCY} checks:`);
  for (const row of rows) console.log(`  ${row["QUERY PLAN"]}`);
};

/** Decisions over a tree of a million nodes. */
export const benchCheckAccess = async (service: BenchService): Promise<void> => {
  const { databaseUrl } = service;
  const clients = Array.from({ length: BATCHES_AT_ONCE }, () => new Client({ connectionString: databaseUrl }));
  const db = openDatabase({ url: databaseUrl, settings: parseConfig({}).database, log: createLog("silent") });
  const [client] = clients;
  if (!client) throw new Error("no client");
  try {
    await Promise.all(clients.map((one) => one.connect()));
    const seconds = await loadAccessWorlds(client, [SMALL, LARGE]);
    console.log(`loaded 1,001,000 nodes, 801,100 assignments and their paths in ${seconds.toFixed(0)} s`);
    await printPlan(client);
    await benchRate(service);
    await benchBatches(service, clients);
    await benchLoneCheck(service, db);
    await benchAccessPages(service, client, LARGE);
  } finally {
    await Promise.all([db.end(), ...clients.map((one) => one.end())]);
  }
};
