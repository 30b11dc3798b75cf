import { type Message, toJsonString } from "@bufbuild/protobuf";
import { expect, test } from "vitest";
import { sampleMessages } from "../support/messages.ts";
import { rowsOf } from "../support/mutations.ts";
import { launchForStorm, plantShared } from "../support/planted.ts";
import { type Rpc, bearer, catalogue, isRead, rpcs, sender } from "../support/rpcs.ts";
import { transports } from "../support/service.ts";

const reads = rpcs.filter(isRead);
// The catalogue of capabilities is everybody's, and grows by what another tenant is planted with.
const isOfOne = (line: string) => !line.startsWith("ListCapabilities ");

test.each(transports)("%s: no read changes anything, nor is answered by what another tenant has", async (transport) => {
  const storm = await launchForStorm(transport);
  const { server } = storm;
  const [mine, other] = [await server.addTenant(), await server.addTenant()];
  const { token } = await server.addService([...catalogue, "a.read"], mine);
  const send = sender(transport, server);
  const plantMine = plantShared({ ...storm, tenantId: mine });
  const requests: { readonly rpc: Rpc; readonly request: Message }[] = [];
  for (const rpc of reads) {
    for (const request of sampleMessages(rpc.method.input, await plantMine(rpc))) requests.push({ rpc, request });
  }
  const answers = async () => {
    const answered = [];
    for (const { rpc, request } of requests) {
      const { message } = await send(rpc, request, bearer(token));
      answered.push(`${rpc.name} ${toJsonString(rpc.method.output, message)}`);
    }
    return answered;
  };

  const before = await rowsOf(server.pool);
  const answered = await answers();
  expect(await rowsOf(server.pool)).toEqual(before);

  const plantOthers = plantShared({ ...storm, tenantId: other });
  for (const rpc of reads) await plantOthers(rpc);
  expect((await answers()).filter(isOfOne)).toEqual(answered.filter(isOfOne));
});
