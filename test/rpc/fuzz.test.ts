import { Code } from "@connectrpc/connect";
import { type Message, create, toBinary, toJson } from "@bufbuild/protobuf";
import fc from "fast-check";
import { sql } from "slonik";
import { afterAll, describe, expect, test } from "vitest";
import { saysReason } from "../support/comments.ts";
import { type Known, sampleMessages, wildMessage } from "../support/messages.ts";
import { oncePerFile } from "../support/per-file.ts";
import { launchForStorm, plantShared } from "../support/planted.ts";
import { type RawAnswer, errorInfoOf, rawCallers } from "../support/raw-calls.ts";
import { type Rpc, bearer, rpcs, sender } from "../support/rpcs.ts";
import { type TestService, type TransportName, transports } from "../support/service.ts";

// Random by default, so that each run looks elsewhere; the name of a failed test says which seed repeats it.
const seed = Number(process.env["FUZZ_SEED"] ?? Date.now() % 2 ** 31);
const numRuns = Number(process.env["FUZZ_RUNS"] ?? 12);

// What a caller may be told of his own message. UNAVAILABLE and the like would hide a fault of ours.
const ANSWERS = new Set([
  0,
  Code.InvalidArgument,
  Code.NotFound,
  Code.AlreadyExists,
  Code.PermissionDenied,
  Code.FailedPrecondition,
  Code.Unauthenticated,
]);

type Storm = Awaited<ReturnType<typeof launchForStorm>>;

/** What follows the first page of each list that has more than one thing. */
const pageTokens = async (transport: TransportName, { server }: Storm, known: Known): Promise<readonly string[]> => {
  const send = sender(transport, server);
  const tokens: string[] = [];
  for (const rpc of rpcs) {
    const { input, output } = rpc.method;
    if (!output.fields.some(({ name }) => name === "next_page_token")) continue;
    const filters = new Set(input.fields.filter(({ proto }) => proto.proto3Optional).map(({ name }) => name));
    const needed = Object.fromEntries(Object.entries(known).filter(([name]) => !filters.has(name)));
    for (const request of sampleMessages(input, needed)) {
      const { message } = await send(rpc, create(input, { ...request, pageSize: 1 }), bearer(server.rootToken));
      tokens.push((message as Message & { nextPageToken: string }).nextPageToken);
    }
  }
  return tokens.filter((token) => token !== "");
};

// So that what one message ends is not the last of its kind.
const SETS = 3;

/** What any RPC's request can name, all in one tenant. */
const plantKnown = async (transport: TransportName, storm: Storm): Promise<Known> => {
  const tenantId = await storm.server.addTenant();
  const values = new Map<string, Set<string>>();
  for (const plant of Array.from({ length: SETS }, () => plantShared({ ...storm, tenantId }))) {
    for (const rpc of rpcs) {
      for (const [name, some] of Object.entries(await plant(rpc))) {
        values.set(name, new Set([...(values.get(name) ?? []), ...some]));
      }
    }
  }
  const known = Object.fromEntries([...values].map(([name, some]) => [name, [...some]]));
  return { ...known, page_token: ["", ...(await pageTokens(transport, storm, known))] };
};

const servers: TestService[] = [];
const world = oncePerFile(async (transport: TransportName) => {
  const storm = await launchForStorm(transport);
  servers.push(storm.server);
  return { server: storm.server, known: await plantKnown(transport, storm) };
});

const expectAnswer = (rpc: Rpc, answer: RawAnswer, decoded: boolean) => {
  // Thousands of answers: an assertion for each is slower than the call.
  if (!ANSWERS.has(answer.code)) expect.fail(`${answer.code} ${answer.text}`);
  const reason = answer.code === 0 ? undefined : errorInfoOf(answer)?.reason;
  if (answer.code !== 0 && decoded && !reason) expect.fail(`no reason: ${answer.text}`);
  if (reason && !saysReason(rpc, reason)) expect.fail(`its comment does not name ${reason}`);
};

/** Bytes that no message of ours has, after those of a message: unknown fields, or nothing that can be decoded. */
const tail = fc.oneof(
  { weight: 3, arbitrary: fc.constant(Buffer.alloc(0)) },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: 127 }).map((n) => Buffer.from([0xf8, 0x3f, n])) },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)) },
);

const fuzz = async (
  rpc: Rpc,
  transport: TransportName,
  bodies: fc.Arbitrary<Uint8Array | string>,
  decoded: boolean,
) => {
  const { server } = await world(transport);
  const caller = rawCallers[transport](server);
  const property = fc.asyncProperty(bodies, async (body) => {
    expectAnswer(rpc, await caller.call(rpc.method, body, bearer(server.rootToken)), decoded);
  });
  try {
    await fc.assert(property, { seed, numRuns, endOnFailure: false, interruptAfterTimeLimit: 10_000 });
  } finally {
    caller.close();
  }
};

describe.each(transports)(`%s, seed ${seed}`, (transport) => {
  test.each(rpcs)("$name answers any message by a reason of the caller's", async (rpc) => {
    const { known } = await world(transport);
    const { input } = rpc.method;
    const bodies = fc
      .tuple(wildMessage(input, known), tail)
      .map(([message, rest]) => Buffer.concat([toBinary(input, message), rest]));
    // Connect decodes before it knows the call: what it refuses carries the code alone.
    await fuzz(rpc, transport, bodies, transport === "grpc");
  });

  test.each(rpcs)("$name takes random bytes for a bad request", async (rpc) => {
    await fuzz(rpc, transport, fc.uint8Array({ maxLength: 200 }), transport === "grpc");
  });
});

/** JSON with the message's own names and anything behind them, or text that is no JSON at all. */
const wildJson = ({ method: { input } }: Rpc, known: Known): fc.Arbitrary<string> => {
  const values = fc.oneof(
    fc.jsonValue(),
    fc.constantFrom("\ud800", 1e400, -0, "9999-12-31T23:59:59.999999999Z", "-1s", "1e9999s"),
  );
  const names = input.fields.flatMap(({ name, jsonName }) => [name, jsonName]);
  const fields = fc.dictionary(fc.oneof(fc.constantFrom("x", "__proto__", ...names), fc.string()), values);
  const typed = wildMessage(input, known).map((message) => {
    try {
      return JSON.stringify(toJson(input, message));
    } catch {
      return "null";
    }
  });
  return fc.oneof(
    fc.string(),
    fields.map((object) => JSON.stringify(object)),
    fc.json(),
    typed,
  );
};

describe(`connect as JSON, seed ${seed}`, () => {
  test.each(rpcs)("$name answers any JSON by a reason of the caller's", async (rpc) => {
    const { known } = await world("connect");
    await fuzz(rpc, "connect", wildJson(rpc, known), false);
  });
});

describe.each(transports)("%s", (transport) => {
  test("a message that cannot be decoded or decompressed is a bad request", async () => {
    const { server } = await world(transport);
    const caller = rawCallers[transport](server);
    const method = rpcs.find(({ name }) => name === "CreateTenant")!.method;
    const broken = Buffer.from([0x12, 0x7f, 0x41]);
    expect(await caller.call(method, broken, bearer(server.rootToken))).toMatchObject({ code: Code.InvalidArgument });
    const gzip = { ...bearer(server.rootToken), "content-encoding": "gzip" };
    if (transport === "connect")
      expect(await caller.call(method, broken, gzip)).toMatchObject({ code: Code.InvalidArgument });
    caller.close();
  });
});

afterAll(async () => {
  // Nothing that was sent may have left a lock, a broken connection or a session that holds one.
  for (const { pool } of servers) {
    const open = await pool.any(sql.unsafe`
      SELECT a.state FROM pg_stat_activity a
      WHERE a.datname = current_database() AND a.state LIKE 'idle in transaction%' AND a.state_change < now() - interval '1 second'`);
    expect(open).toEqual([]);
  }
});
