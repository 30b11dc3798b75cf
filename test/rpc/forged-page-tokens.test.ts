import { type Message, create } from "@bufbuild/protobuf";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { readPage } from "../../src/rpc/page.ts";
import { sampleMessages } from "../support/messages.ts";
import { oncePerFile } from "../support/per-file.ts";
import { refused } from "../support/refusals.ts";
import { bearer, rpcs, sender } from "../support/rpcs.ts";
import { type TransportName, startService, transports } from "../support/service.ts";

const lists = rpcs.filter(({ method }) => method.input.fields.some(({ name }) => name === "page_token"));

const text = fc.oneof(fc.constantFrom("", "a", "a\0", "\0", "\ud800", "x".repeat(2_000)), fc.string({ maxLength: 3 }));
const number = fc.constantFrom("0", "-1", "1700000000000000", "-62135596800000001", "9".repeat(18), "1e3");
const part = fc.oneof(fc.uuid(), text, number, fc.maxSafeInteger(), fc.jsonValue({ maxDepth: 1 }));

/** Keys such as the lists have, with what they may not be in one place or another, and such as none has. */
const keys = fc.oneof(
  part,
  fc.array(part, { maxLength: 3 }),
  fc.tuple(number, fc.uuid()),
  fc.tuple(fc.integer(), fc.uuid()),
  fc.tuple(fc.constantFrom("email", "phone", "name"), text, fc.uuid()),
);

const world = oncePerFile(async (transport: TransportName) => {
  const server = await startService(transport);
  return { send: sender(transport, server), root: bearer(server.rootToken), tenantId: await server.addTenant() };
});

describe.each(transports)("%s", (transport) => {
  test.each(lists)("$name refuses a token that is forged for its filters, or starts elsewhere", async (rpc) => {
    const { send, root, tenantId } = await world(transport);
    const { input } = rpc.method;
    const requests = [{}, { prefix: ["a"] }].flatMap((named) =>
      sampleMessages(input, { tenant_id: [tenantId], ...named }),
    ) as (Message & { pageSize: number; pageToken: string })[];
    const property = fc.asyncProperty(fc.constantFrom(...requests), keys, async (request, key) => {
      const pageToken = readPage(input, { ...request, pageToken: "" }, z.unknown()).tokenAfter(key);
      const outcome = await send(rpc, create(input, { ...request, pageToken }), root).then(
        () => "answered",
        async (error: unknown) => (await refused(Promise.reject(error as Error))).reason,
      );
      expect(outcome).toMatch(/^(answered|INVALID_REQUEST|[A-Z]+_NOT_FOUND)$/);
    });
    await fc.assert(property, { numRuns: 100 });
  });
});
