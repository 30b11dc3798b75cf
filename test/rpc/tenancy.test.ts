import { randomUUID } from "node:crypto";
import { type Message, create, toJsonString } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.ts";
import { saysReason } from "../support/comments.ts";
import { type Known, sampleMessages } from "../support/messages.ts";
import { oncePerFile } from "../support/per-file.ts";
import { fieldNames, givesContact, launchForStorm, plantFor, plantShared } from "../support/planted.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type Rpc, bearer, catalogue, guarded, isRead, sender } from "../support/rpcs.ts";
import { type TestService, type TransportName, transports } from "../support/service.ts";
import { uniqueEmail, uniquePhone } from "../support/users.ts";

const namesTenant = ({ method }: Rpc) => method.input.fields.some(({ name }) => name === "tenant_id");

/** Fields that say which of a tenant's things is meant, and what nothing has in each. */
const UNKNOWN: readonly (readonly [RegExp, (value: string) => string])[] = [
  [/^(?!tenant).*_ids?$/, () => randomUUID()],
  [/^(refresh|access|invite|service)_token$/, (token) => token.replace(/.$/, (last) => (last === "A" ? "B" : "A"))],
  [/^(email|destination)$/, () => uniqueEmail()],
  [/^phone$/, () => uniquePhone()],
  [/^key$/, () => `k${randomUUID().replaceAll("-", "")}`],
];
const unknownOf = (name: string) => UNKNOWN.find(([pattern]) => pattern.test(name))?.[1];

const namesOfThings = (rpc: Rpc) =>
  fieldNames(rpc.method.input).filter(
    (name) => unknownOf(name) && !(givesContact(rpc) && /^(email|phone)$/.test(name)),
  );

/** Who asks is a service of one tenant that may do all there, and what is asked for is another tenant's. */
const start = async (transport: TransportName) => {
  const storm = await launchForStorm(transport);
  const { server } = storm;
  const [mine, other] = [await server.addTenant(), await server.addTenant()];
  // One that the planted services have: else nobody but root could change them.
  const { token } = await server.addService([...catalogue, "a.read"], mine);
  const sendAny = sender(transport, server);
  const send = (rpc: Rpc, request: Message) => sendAny(rpc, request, bearer(token));
  const ground = { ...storm, tenantId: mine };
  return {
    server,
    other,
    send,
    plant: (rpc: Rpc) => plantFor(ground, rpc),
    /** What no request changes: it only reads, or is refused. */
    plantMine: plantShared(ground),
    /** What nobody changes, or a test fails. */
    plantForeign: plantShared({ ...storm, tenantId: other }),
  };
};
type World = Awaited<ReturnType<typeof start>>;

const world = oncePerFile(start);

/** What is answered, as text: a message, or why there is none. */
const answerTo = async ({ send }: World, rpc: Rpc, request: Message): Promise<string> => {
  try {
    return toJsonString(rpc.method.output, (await send(rpc, request)).message);
  } catch (error) {
    const [info] = error instanceof ConnectError ? error.findDetails(ErrorInfoSchema) : [];
    if (!info || !saysReason(rpc, info.reason)) throw error;
    return info.reason;
  }
};

const countRow = z.object({ events: z.bigint() });

const eventCount = ({ pool }: TestService, tenantId: string) =>
  pool.oneFirst(sql.type(countRow)`SELECT count(*) AS events FROM audit_events WHERE tenant_id = ${tenantId}::uuid`);

/** The same with some fields of another's. */
const replaced = (own: Known, names: readonly string[], value: (name: string) => readonly string[]): Known => ({
  ...own,
  ...Object.fromEntries(names.map((name) => [name, value(name)])),
});

describe.each(transports)("%s", (transport) => {
  test.each(guarded.filter(namesTenant))("$name refuses a tenant that is not the caller's, and none", async (rpc) => {
    const { server, other, send, plantMine, plantForeign } = await world(transport);
    const { input } = rpc.method;
    const [own, foreign] = [await plantMine(rpc), await plantForeign(rpc)];
    const events = await eventCount(server, other);
    for (const request of sampleMessages(input, { ...foreign, tenant_id: [other] })) {
      await expectRefusal(send(rpc, request), "TENANT_MISMATCH");
    }
    const isOptional = input.fields.find(({ name }) => name === "tenant_id")?.proto.proto3Optional;
    for (const request of sampleMessages(input, own)) {
      const unnamed = create(input, { ...request, tenantId: isOptional ? undefined : "" });
      await expectRefusal(send(rpc, unnamed), "TENANT_MISMATCH");
    }
    expect(await eventCount(server, other)).toBe(events);
  });

  test.each(guarded.filter((rpc) => namesOfThings(rpc).length > 0))(
    "$name takes another tenant's things for unknown ones",
    async (rpc) => {
      const asked = await world(transport);
      const { server, other, plant, plantMine, plantForeign } = asked;
      const foreign = await plantForeign(rpc);
      // Two alike where what is answered may change them.
      const own = await (isRead(rpc) ? plantMine(rpc) : plant(rpc));
      const twin = isRead(rpc) ? own : await plant(rpc);
      const names = namesOfThings(rpc).filter((name) => foreign[name]);
      const ids = names.filter((name) => /_(ids?|token)$/.test(name)).flatMap((name) => foreign[name] ?? []);
      const events = await eventCount(server, other);
      for (const some of [names, ...names.map((name) => [name])].filter(({ length }) => length > 0)) {
        const theirs = replaced(own, some, (name) => foreign[name] ?? []);
        const nobodys = replaced(twin, some, (name) => (foreign[name] ?? []).map(unknownOf(name)!));
        const unknown = sampleMessages(rpc.method.input, nobodys);
        for (const [index, request] of sampleMessages(rpc.method.input, theirs).entries()) {
          const answer = await answerTo(asked, rpc, request);
          for (const id of ids) expect(answer).not.toContain(id);
          const expected = await answerTo(asked, rpc, unknown[index]!);
          expect([some, answer.replace(/^\{.*/, "answered")]).toEqual([some, expected.replace(/^\{.*/, "answered")]);
        }
      }
      expect(await eventCount(server, other)).toBe(events);
    },
  );
});
