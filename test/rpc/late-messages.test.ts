import { once } from "node:events";
import { type IncomingMessage, request as requestPlain } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { text } from "node:stream/consumers";
import { create, toBinary } from "@bufbuild/protobuf";
import { describe, expect, onTestFinished, test } from "vitest";
import { RegisterServiceRequestSchema } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { frame } from "../support/frames.ts";
import { beginGrpc, openGrpc, reasonIn } from "../support/raw-grpc.ts";
import { type TestService, type TransportName, startService, transports, uniqueKey } from "../support/service.ts";
import { signInBy } from "../support/sign-in.ts";

const PATH = "/service_identity.v1.ServiceIdentityService/RegisterService";
const PERMISSIONS = ["service.write"];
// What a caller is seen by has come long before its message.
const LATE_MS = 500;

type Headers = Readonly<Record<string, string>>;
interface Begun {
  /** Sends the message, and answers with all that came back. */
  finish(): Promise<string>;
}

/** Begins to register a service, and leaves the message for later. */
const begin: Record<TransportName, (service: TestService, headers: Headers, key: string) => Begun> = {
  grpc(service, headers, key) {
    const { stream, answered } = beginGrpc(openGrpc(service), PATH, headers);
    return {
      async finish() {
        const request = create(RegisterServiceRequestSchema, { key, label: key, permissions: PERMISSIONS });
        stream.end(frame(Buffer.from(toBinary(RegisterServiceRequestSchema, request))));
        return reasonIn(await answered);
      },
    };
  },
  connect(service, headers, key) {
    const json = { "content-type": "application/json", "transfer-encoding": "chunked" };
    const target = { port: service.httpPort, host: "127.0.0.1", path: PATH, method: "POST" };
    const request = requestPlain({ ...target, headers: { ...json, ...headers } });
    const answered = once(request, "response") as Promise<[IncomingMessage]>;
    onTestFinished(() => void request.destroy());
    request.flushHeaders();
    return {
      async finish() {
        request.end(JSON.stringify({ key, label: key, permissions: PERMISSIONS }));
        const [response] = await answered;
        return text(response);
      },
    };
  },
};

describe.each(transports)("%s: a message that comes late", (transport) => {
  test.each([
    [
      "of a service that was disabled meanwhile",
      "CALLER_TOKEN_INVALID",
      ({ services }: TestService, serviceId: string) => services.disableService({ serviceId }),
    ],
    [
      "of one that has lost its permission",
      "PERMISSION_MISSING",
      ({ services }: TestService, serviceId: string) =>
        services.revokeServicePermissions({ serviceId, permissions: PERMISSIONS }),
    ],
  ])("%s is %s, and nothing is written", async (_, reason, lose) => {
    const service = await startService(transport);
    const { serviceId, token } = await service.addService(PERMISSIONS);
    const key = uniqueKey();
    const begun = begin[transport](service, { authorization: `Bearer ${token}` }, key);
    await sleep(LATE_MS);
    await lose(service, serviceId);
    expect(await begun.finish()).toContain(reason);
    await expect(service.services.getService({ selector: { case: "key", value: key } })).rejects.toThrow();
  });

  test("for a user whose session has ended meanwhile is ACTOR_TOKEN_INVALID", async () => {
    const service = await startService(transport);
    const { tenantId, sessionId, accessToken } = await (await signInBy(service))();
    const { token } = await service.addService(PERMISSIONS);
    const headers = { authorization: `Bearer ${token}`, "x-actor-token": accessToken };
    const begun = begin[transport](service, headers, uniqueKey());
    await sleep(LATE_MS);
    await service.auth.revokeSession({ tenantId, sessionId });
    expect(await begun.finish()).toContain("ACTOR_TOKEN_INVALID");
  });

  test("of a caller who still may call is answered", async () => {
    const service = await startService(transport);
    const { token } = await service.addService(PERMISSIONS);
    const key = uniqueKey();
    const begun = begin[transport](service, { authorization: `Bearer ${token}` }, key);
    await sleep(LATE_MS);
    await begun.finish();
    const { service: made } = await service.services.getService({ selector: { case: "key", value: key } });
    expect(made?.permissions).toEqual(PERMISSIONS);
  });
});
