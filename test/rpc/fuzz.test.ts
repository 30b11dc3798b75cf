import { Code } from "@connectrpc/connect";
import { toBinary, toJson } from "@bufbuild/protobuf";
import fc from "fast-check";
import { sql } from "slonik";
import { afterAll, describe, expect, test } from "vitest";
import { type Known, wildMessage } from "../support/messages.ts";
import { launchForStorm, plantAuth } from "../support/planted-auth.ts";
import { type RawAnswer, errorInfoOf, rawCallers } from "../support/raw-calls.ts";
import { type Rpc, bearer, rpcs } from "../support/rpcs.ts";
import { type TestService, type TransportName, transports } from "../support/service.ts";

// Random by default, so that each run looks elsewhere; the name of a failed test says which seed repeats it.
const seed = Number(process.env["FUZZ_SEED"] ?? Date.now() % 2 ** 31);
const numRuns = Number(process.env["FUZZ_RUNS"] ?? 25);

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

const plantKnown = async ({ server, issuer }: Storm): Promise<Known> => {
  const tenantId = await server.addTenant();
  const auth = await plantAuth(server, issuer, tenantId);
  const { serviceId, secretId, token, secret, key } = await server.addService(["*"], tenantId);
  const tokens = await Promise.all(
    ["tenant", "service", "session", "event", "user"].map((list) => pageToken(server, list, serviceId, tenantId)),
  );
  const { events } = await server.org.listAuditEvents({ tenantId });
  return {
    ...auth,
    tenant_id: [tenantId],
    after_audit_id: events.map(({ auditId }) => auditId),
    service_id: [serviceId],
    secret_id: [secretId],
    entity_id: [tenantId, serviceId, ...(auth["user_id"] ?? [])],
    service_token: [token],
    session_id: [token.split("_")[1] ?? "", ...(auth["session_id"] ?? [])],
    secret: [secret],
    key: [key],
    page_token: ["", ...tokens],
  };
};

const pageToken = async (server: TestService, list: string, serviceId: string, tenantId: string) => {
  const { auth, org, services, addTenant, addService } = server;
  const page = { pageSize: 1 };
  if (list === "tenant") await addTenant();
  if (list === "service") await addService([]);
  const lists: Record<string, () => Promise<{ nextPageToken: string }>> = {
    tenant: () => org.listTenants(page),
    service: () => services.listServices(page),
    session: () => services.listServiceSessions({ ...page, serviceId, includeEnded: true }),
    event: () => org.listAuditEvents(page),
    user: () => auth.listUsers({ ...page, tenantId }),
  };
  return (await lists[list]?.())?.nextPageToken ?? "";
};

const started = new Map<TransportName, Promise<{ server: TestService; known: Known }>>();
const world = (transport: TransportName) => {
  const made =
    started.get(transport) ??
    launchForStorm(transport).then(async (storm) => ({ server: storm.server, known: await plantKnown(storm) }));
  started.set(transport, made);
  return made;
};

const expectAnswer = (answer: RawAnswer, decoded: boolean) => {
  expect([...ANSWERS], `${answer.code} ${answer.text}`).toContain(answer.code);
  if (answer.code !== 0 && decoded) expect(errorInfoOf(answer)?.reason).toBeTruthy();
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
    expectAnswer(await caller.call(rpc.method, body, bearer(server.rootToken)), decoded);
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
  for (const world of started.values()) {
    const { server } = await world;
    const open = await server.pool.any(sql.unsafe`
      SELECT a.state FROM pg_stat_activity a
      WHERE a.datname = current_database() AND a.state LIKE 'idle in transaction%' AND a.state_change < now() - interval '1 second'`);
    expect(open).toEqual([]);
  }
});
