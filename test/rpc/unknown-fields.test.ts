import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { expect, test } from "vitest";
import { ListTenantsRequestSchema, ListTenantsResponseSchema, OrgService } from "../../src/gen/org/v1/org_pb.ts";
import { type RawCaller, rawConnect, rawGrpc } from "../support/raw-calls.ts";
import { bearer } from "../support/rpcs.ts";
import { startService, transports } from "../support/service.ts";

/** Field 15, a varint: no request of ours has it. */
const UNKNOWN = Buffer.from([0x78, 1]);

const RAW = { grpc: rawGrpc, connect: rawConnect };

test.each(transports)(
  "%s: a binary message is as if the fields that its proto does not have were not there",
  async (transport) => {
    const server = await startService(transport);
    await server.addTenant();
    await server.addTenant();
    const raw: RawCaller = RAW[transport](server);
    const list = async (pageToken: string, more: Buffer) => {
      const known = toBinary(ListTenantsRequestSchema, create(ListTenantsRequestSchema, { pageSize: 1, pageToken }));
      const { code, body } = await raw.call(
        OrgService.method.listTenants,
        Buffer.concat([known, more]),
        bearer(server.rootToken),
      );
      expect(code).toBe(0);
      return fromBinary(ListTenantsResponseSchema, body);
    };

    const plain = await list("", Buffer.of());
    // Two millions of them, which are all that a message has room for, leave nothing behind either: the token would have them.
    const filled = await list("", Buffer.alloc(4_000_000, UNKNOWN));
    expect(filled).toEqual(plain);
    expect((await list(filled.nextPageToken, UNKNOWN)).tenants).toHaveLength(1);
    raw.close();
  },
);
