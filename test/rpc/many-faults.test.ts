import { randomUUID } from "node:crypto";
import { type ClientHttp2Session, type IncomingHttpHeaders, connect } from "node:http2";
import { toBinary, create } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BatchCheckAccessRequestSchema } from "../../src/gen/org/v1/org_pb.ts";
import { longLists } from "../../src/rpc/list-bounds.ts";
import { frame } from "../support/frames.ts";
import { expectRefusal } from "../support/refusals.ts";
import { bearer, rpcs } from "../support/rpcs.ts";
import { type TestService, startService, transports } from "../support/service.ts";

const LIST_MAX = 1_000;

const many = <T>(make: (index: number) => T, count = LIST_MAX) =>
  Array.from({ length: count }, (_, index) => make(index));
const broken = { userId: "no id", nodeId: "no id", capability: "No.Key" };

describe.each(transports)("%s: of a request with very many faults", (transport) => {
  let server: TestService;
  let tenantId: string;
  beforeAll(async () => {
    server = await startService(transport);
    tenantId = await server.addTenant();
  });

  test("that has a list too long, that alone is told, and its items are not looked at", async () => {
    const { services, org } = server;
    const permissions = many(() => "", 20_000);
    const longest = await expectRefusal(
      services.authenticateService({ key: "root", secret: "x", permissions }),
      "INVALID_REQUEST",
    );
    expect(longest.fields).toEqual(["permissions"]);
    const checks = many(() => broken, LIST_MAX + 1);
    const { fields } = await expectRefusal(org.batchCheckAccess({ tenantId, checks }), "INVALID_REQUEST");
    expect(fields).toEqual(["checks"]);
  });

  test.each([
    ["each item", (to: TestService) => to.org.batchCheckAccess({ tenantId, checks: many(() => broken) })],
    [
      "each text",
      (to: TestService) => to.org.createRole({ tenantId, label: "Role", capabilityKeys: many((n) => `Key ${n}`) }),
    ],
    [
      "each after the first",
      (to: TestService) => {
        const node = { nodeId: randomUUID(), nodeType: "city", label: "Node" };
        return to.org.batchCreateNodes({ tenantId, nodes: many(() => node) });
      },
    ],
  ])("in %s, twenty are told and the number of the others", async (_, call) => {
    const { fields, error } = await expectRefusal(call(server), "INVALID_REQUEST");
    expect(fields).toHaveLength(20);
    expect(new Set(fields).size).toBe(20);
    expect(error.rawMessage).toMatch(/; and \d{3,4} more\)$/);
  });
});

test("every list of a request has a bound", () => {
  for (const { method } of rpcs) expect(() => longLists(method.input)).not.toThrow();
});

describe("over gRPC", () => {
  let session: ClientHttp2Session;
  let server: TestService;
  beforeAll(async () => {
    server = await startService("grpc");
    session = connect(`http://127.0.0.1:${server.grpcPort}`);
  });
  afterAll(() => session.close());

  test("they fit into what clients take of headers", async () => {
    const message = toBinary(
      BatchCheckAccessRequestSchema,
      create(BatchCheckAccessRequestSchema, { tenantId: randomUUID(), checks: many(() => broken) }),
    );
    const answer = await new Promise<IncomingHttpHeaders>((resolve, reject) => {
      const stream = session.request({
        ":method": "POST",
        ":path": "/org.v1.OrgService/BatchCheckAccess",
        "content-type": "application/grpc",
        te: "trailers",
        ...bearer(server.rootToken),
      });
      stream.on("response", resolve).on("error", reject);
      stream.resume().end(frame(message));
    });
    expect(answer["grpc-status"]).toBe("3");
    // As HPACK and the clients' limits count them (RFC 7541, 4.1).
    const size = Object.entries(answer).reduce(
      (sum, [name, value]) => sum + name.length + String(value).length + 32,
      0,
    );
    expect(size).toBeLessThan(8_192);
  });
});
