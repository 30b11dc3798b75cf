import { once } from "node:events";
import { type IncomingMessage, request as requestPlain } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { text } from "node:stream/consumers";
import { create, toBinary } from "@bufbuild/protobuf";
import { describe, expect, onTestFinished, test } from "vitest";
import { RegisterServiceRequestSchema } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { frame } from "../support/frames.ts";
import { beginGrpc, openGrpc, reasonIn } from "../support/raw-grpc.ts";
import { expectRefusal } from "../support/refusals.ts";
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

/** Begins to register a service over each transport; answers with all that came back once the messages were sent. */
const beginBoth = (service: TestService, headers: Headers) => {
  const keys = transports.map(uniqueKey);
  const begun = transports.map((transport, n) => begin[transport](service, headers, keys[n]!));
  return { keys, finish: () => Promise.all(begun.map(({ finish }) => finish())) };
};

const start = () => startService("grpc");
const onBoth = (reason: string) => transports.map(() => expect.stringContaining(reason) as unknown);

describe("on each transport a message that comes late", () => {
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
    const service = await start();
    const { serviceId, token } = await service.addService(PERMISSIONS);
    const { keys, finish } = beginBoth(service, { authorization: `Bearer ${token}` });
    await sleep(LATE_MS);
    await lose(service, serviceId);
    expect(await finish()).toEqual(onBoth(reason));
    for (const value of keys) {
      await expectRefusal(service.services.getService({ selector: { case: "key", value } }), "SERVICE_NOT_FOUND");
    }
  });

  test("for a user whose session has ended meanwhile is ACTOR_TOKEN_INVALID", async () => {
    const service = await start();
    const { tenantId, sessionId, accessToken } = await (await signInBy(service))();
    const { token } = await service.addService(PERMISSIONS);
    const { finish } = beginBoth(service, { authorization: `Bearer ${token}`, "x-actor-token": accessToken });
    await sleep(LATE_MS);
    await service.auth.revokeSession({ tenantId, sessionId });
    expect(await finish()).toEqual(onBoth("ACTOR_TOKEN_INVALID"));
  });

  test("of a caller who still may call is answered", async () => {
    const service = await start();
    const { token } = await service.addService(PERMISSIONS);
    const { keys, finish } = beginBoth(service, { authorization: `Bearer ${token}` });
    await sleep(LATE_MS);
    await finish();
    for (const value of keys) {
      const { service: made } = await service.services.getService({ selector: { case: "key", value } });
      expect(made?.permissions).toEqual(PERMISSIONS);
    }
  });
});
