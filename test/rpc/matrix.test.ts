import { randomUUID } from "node:crypto";
import type { Message } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";
import { ConnectError } from "@connectrpc/connect";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.ts";
import { makeCredential } from "../../src/service-identity/credentials.ts";
import { type Known, sampleMessages } from "../support/messages.ts";
import { oncePerFile } from "../support/per-file.ts";
import { expectRefusal, refused } from "../support/refusals.ts";
import { type Rpc, bearer, catalogue, guarded, rpcs, sender, services } from "../support/rpcs.ts";
import {
  type SignedInService,
  type TestService,
  type TransportName,
  startService,
  transports,
} from "../support/service.ts";

const byPermission = guarded.filter(({ rule }) => rule.case === "permission");

const validator = createValidator();

/** What one tenant has: requests are made from it. */
interface TenantOfTest {
  readonly tenantId: string;
  readonly service: SignedInService;
  readonly known: Known;
}

const plantTenant = async (server: TestService, permissions: readonly string[]): Promise<TenantOfTest> => {
  const tenantId = await server.addTenant();
  const service = await server.addService(permissions, tenantId);
  const { sessions } = await server.services.listServiceSessions({ serviceId: service.serviceId });
  const { events } = await server.org.listAuditEvents({ tenantId });
  const known = {
    tenant_id: [tenantId],
    service_id: [service.serviceId],
    secret_id: [service.secretId],
    session_id: sessions.map(({ sessionId }) => sessionId),
    service_token: [service.token],
    after_audit_id: [events.at(-1)?.auditId ?? ""],
  };
  return { tenantId, service, known };
};

/** Another random part, under a checksum that is right again. */
const forged = (token: string) => makeCredential("skt", token.split("_")[1] ?? "");

const expired = async (server: TestService) => {
  const { token, serviceId } = await server.addService(["*"]);
  await server.pool.query(
    sql.unsafe`UPDATE service_sessions SET expiry_utc = now() - interval '1 second' WHERE svc_id = ${serviceId}::uuid`,
  );
  return token;
};

const revoked = async (server: TestService) => {
  const { token, services: own } = await server.addService(["*"]);
  await own.revokeServiceSession({ selector: { case: "serviceToken", value: token } });
  return token;
};

const disabled = async (server: TestService) => {
  const { token, serviceId } = await server.addService(["*"]);
  await server.services.disableService({ serviceId });
  return token;
};

type Headers = Readonly<Record<string, string>>;

const wrongCallers = async (server: TestService): Promise<readonly (readonly [string, Headers])[]> => {
  const { token, secret } = await server.addService(["*"]);
  return [
    ["no token", {}],
    ["an empty header", { authorization: "" }],
    ["a scheme alone", { authorization: "Bearer" }],
    ["another scheme", { authorization: `Basic ${token}` }],
    ["no scheme", { authorization: token }],
    ["nonsense", bearer("nonsense")],
    ["a token cut short", bearer(token.slice(0, -1))],
    ["a token and more", { authorization: `Bearer ${token} ${token}` }],
    ["4,097 characters", bearer("x".repeat(4_090))],
    ["a wrong checksum", bearer(token.replace(/.$/, (last) => (last === "0" ? "1" : "0")))],
    ["an unknown id", bearer(makeCredential("skt", randomUUID()))],
    ["a forged token of a session", bearer(forged(token))],
    ["an expired token", bearer(await expired(server))],
    ["a revoked token", bearer(await revoked(server))],
    ["a disabled service's token", bearer(await disabled(server))],
    ["a secret", bearer(secret)],
    ["a secret that calls itself a token", bearer(secret.replace("sks", "skt"))],
  ];
};

const onceForEach = <T>(make: (permissions: readonly string[]) => Promise<T>) => {
  const once = oncePerFile((key: string) => make(key.split(",")));
  return (...permissions: readonly string[]): Promise<T> => once(permissions.join());
};

/** Everything except what is asked for, however near it comes. */
const nearMisses = (permission: string) => [
  ...catalogue.filter((other) => other !== permission),
  `${permission}.*`,
  `${permission}.x`,
  permission.split(".").slice(0, -1).join(".") || "x",
];

/** Two tenants' services: one whose tenant is suspended, and one whose tenant was while it had asked, and is active again. */
const plantSuspended = async (server: TestService) => {
  const [suspended, activated] = [await plantTenant(server, catalogue), await plantTenant(server, catalogue)];
  for (const { tenantId, service } of [suspended, activated]) {
    await service.org.getTenant({ tenantId });
    await server.org.suspendTenant({ tenantId });
    await expectRefusal(service.org.getTenant({ tenantId }), "TENANT_SUSPENDED");
  }
  await server.org.activateTenant({ tenantId: activated.tenantId });
  return { suspended, activated };
};

/** The token of a service that had every permission when it signed in, and has lost them. */
const stripped = async (server: TestService) => {
  const { serviceId, token } = await server.addService(["*"]);
  await server.services.revokeServicePermissions({ serviceId, permissions: ["*"] });
  return token;
};

/** Whose tokens are sent. Both transports lead to one server: each is made once for both. */
const callersOf = oncePerFile(async (transport: TransportName) => {
  const server = await startService(transport);
  const every = await server.addService(["*"]);
  return {
    /** The token of one service for each set of permissions. */
    tokenOf: onceForEach(async (permissions) => (await server.addService(permissions)).token),
    /** Tokens of a service that may do all, each with no more permissions than these. */
    narrowed: onceForEach(async (permissions) => {
      const signIn = { key: every.key, secret: every.secret, permissions: [...permissions] };
      return (await server.as(undefined).services.authenticateService(signIn)).serviceToken;
    }),
    stripped: await stripped(server),
    callers: await wrongCallers(server),
  };
});

const world = oncePerFile(async (transport: TransportName) => {
  const server = await startService(transport);
  return {
    send: sender(transport, server),
    known: (await plantTenant(server, [])).known,
    ...(await callersOf("grpc")),
    ...(await plantSuspended(server)),
  };
});

const reasonOf = (error: unknown) =>
  error instanceof ConnectError ? error.findDetails(ErrorInfoSchema)[0]?.reason : String(error);

const samples = ({ method }: Rpc, known: Known): readonly Message[] => sampleMessages(method.input, known);

test("the walk finds every service, and each of its methods", () => {
  expect(services.map(({ typeName }) => typeName)).toEqual(
    expect.arrayContaining(["auth.v1.AuthService", "org.v1.OrgService", "service_identity.v1.ServiceIdentityService"]),
  );
  expect(rpcs).toHaveLength(services.flatMap(({ methods }) => methods).length);
  expect(guarded.length).toBeGreaterThan(catalogue.length);
});

test.each(rpcs)("$name: the matrix's requests keep the rules", ({ method }) => {
  const requests = sampleMessages(method.input);
  expect(requests.length).toBeGreaterThan(0);
  for (const request of requests) expect(validator.validate(method.input, request)).toMatchObject({ kind: "valid" });
});

describe.each(transports)("%s", (transport) => {
  test.each(guarded)("$name refuses who does not prove itself", async (rpc) => {
    const { send, known, callers } = await world(transport);
    const [request] = samples(rpc, known);
    const answers = callers.map(async ([name, headers]) => {
      const { reason, error } = await refused(send(rpc, request!, headers));
      return [name, reason, error.code];
    });
    expect(await Promise.all(answers)).toEqual(callers.map(([name]) => [name, "CALLER_TOKEN_INVALID", 16]));
  });

  test.each(byPermission)("$name needs its own permission", async (rpc) => {
    const { send, known, tokenOf } = await world(transport);
    const permission = String(rpc.rule.value);
    const [request] = samples(rpc, known);
    const token = await tokenOf(...nearMisses(permission));
    const { metadata } = await expectRefusal(send(rpc, request!, bearer(token)), "PERMISSION_MISSING");
    expect(metadata).toMatchObject({ permission });
  });

  test.each(byPermission)("$name needs nothing else than its permission, or what covers it", async (rpc) => {
    const { send, known, tokenOf } = await world(transport);
    const permission = String(rpc.rule.value);
    // A watch that begins after an event has another to tell, and so begins at once.
    const [request] = samples(rpc, { after_audit_id: known["after_audit_id"]! });
    for (const held of ["*", permission, permission.replace(/\.[^.]*$/, ".*")]) {
      const token = await tokenOf(held);
      const reason = await send(rpc, request!, bearer(token)).then(() => undefined, reasonOf);
      expect([held, reason]).not.toEqual([held, "PERMISSION_MISSING"]);
    }
  });

  test.each(byPermission)(
    "$name counts neither what the token leaves out nor what its service has lost",
    async (rpc) => {
      const { send, narrowed, stripped: lost } = await world(transport);
      const [request] = samples(rpc, {});
      const narrower = await narrowed(...nearMisses(String(rpc.rule.value)));
      await expectRefusal(send(rpc, request!, bearer(narrower)), "PERMISSION_MISSING");
      await expectRefusal(send(rpc, request!, bearer(lost)), "PERMISSION_MISSING");
    },
  );

  test.each(guarded)("$name refuses a suspended tenant's service until the tenant is activated", async (rpc) => {
    const { send, suspended, activated } = await world(transport);
    const { metadata } = await expectRefusal(
      send(rpc, samples(rpc, suspended.known).at(-1)!, bearer(suspended.service.token)),
      "TENANT_SUSPENDED",
    );
    expect(metadata).toMatchObject({ tenant_id: suspended.tenantId });

    // Nothing of the service itself, which has to prove itself to the RPCs that follow.
    const { tenant_id, after_audit_id } = activated.known;
    const request = samples(rpc, { tenant_id: tenant_id!, after_audit_id: after_audit_id! }).at(-1)!;
    const reason = await send(rpc, request, bearer(activated.service.token)).then(() => undefined, reasonOf);
    expect(["TENANT_SUSPENDED", "CALLER_TOKEN_INVALID"]).not.toContain(reason);
  });
});
