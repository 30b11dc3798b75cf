import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { ServiceIdentityService } from "../../src/gen/service_identity/v1/service_identity_pb.ts";
import { type Stage as AnyStage, mutationOf, testMutations } from "../support/mutations.ts";
import { recorded } from "../support/recorded.ts";
import { type SignedInService, type TransportName, startService, transports, uniqueKey } from "../support/service.ts";

interface Stage extends AnyStage {
  /** A service of the tenant with one secret, one session and the permission `a.read`. */
  readonly target: SignedInService;
}

const row = mutationOf<Stage>();

const plant = async (transport: TransportName, beside?: Stage): Promise<Stage> => {
  const server = await startService(transport);
  const tenantId = beside?.tenantId ?? (await server.addTenant());
  return { server, tenantId, target: await server.addService(["a.read"], tenantId) };
};

const id = ({ target }: Stage) => ({ serviceId: target.serviceId });

const event = (action: string, { target }: Stage, payload = {}) => {
  return { action, entityKind: "service", entityId: target.serviceId, payload };
};

testMutations({
  service: ServiceIdentityService,
  silent: ["AuthenticateService"],
  plant,
  mutations: [
    row({
      rpc: "RegisterService",
      before: async () => ({
        serviceId: randomUUID(),
        key: uniqueKey(),
        label: "Registered",
        permissions: ["b", "a"],
      }),
      call: ({ server }, service) => server.services.registerService(service),
      events: (_, { serviceId, key }, { secretId }) => [
        {
          action: "service.register",
          entityKind: "service",
          entityId: serviceId,
          tenantId: undefined,
          payload: { key, permissions: ["a", "b"], secret_id: secretId },
        },
      ],
    }),
    row({
      rpc: "UpdateService",
      call: (stage) => stage.server.services.updateService({ ...id(stage), label: "Renamed" }),
      events: (stage) => [event("service.update", stage, { fields: ["label"] })],
    }),
    row({
      rpc: "DisableService",
      call: (stage) => stage.server.services.disableService(id(stage)),
      events: (stage) => [event("service.disable", stage)],
    }),
    row({
      rpc: "EnableService",
      before: (stage) => stage.server.services.disableService(id(stage)),
      call: (stage) => stage.server.services.enableService(id(stage)),
      events: (stage) => [event("service.enable", stage)],
    }),
    row({
      rpc: "CreateServiceSecret",
      call: (stage) => stage.server.services.createServiceSecret(id(stage)),
      events: (stage, _, { secretId }) => [event("service.secret.create", stage, { secret_id: secretId })],
      repeats: ["service.secret.create"],
    }),
    row({
      rpc: "RotateServiceSecret",
      call: (stage) => stage.server.services.rotateServiceSecret(id(stage)),
      events: (stage, _, { secretId }) => {
        const payload = {
          secret_id: secretId,
          ended_secret_ids: [stage.target.secretId],
          ended_secrets: 1,
          overlap_ms: 0,
        };
        return [event("service.secret.rotate", stage, payload)];
      },
      repeats: ["service.secret.rotate"],
    }),
    row({
      rpc: "RevokeServiceSecret",
      call: ({ server, target: { serviceId, secretId } }) =>
        // An event has the id as it is stored, however it was spelled.
        server.services.revokeServiceSecret({ serviceId, secretId: secretId.toUpperCase() }),
      events: (stage) => [event("service.secret.revoke", stage, { secret_id: stage.target.secretId })],
    }),
    row({
      rpc: "GrantServicePermissions",
      call: (stage) =>
        stage.server.services.grantServicePermissions({ ...id(stage), permissions: ["c", "a.read", "b"] }),
      events: (stage) => [event("service.permissions.grant", stage, { permissions: ["b", "c"] })],
    }),
    row({
      rpc: "RevokeServicePermissions",
      call: (stage) => stage.server.services.revokeServicePermissions({ ...id(stage), permissions: ["a.read", "b"] }),
      events: (stage) => [event("service.permissions.revoke", stage, { permissions: ["a.read"] })],
    }),
    row({
      rpc: "RevokeServiceSession",
      call: ({ server, target }) =>
        server.services.revokeServiceSession({ selector: { case: "serviceToken", value: target.token } }),
      events: (stage) => [event("service.session.revoke", stage, { session_id: stage.target.token.split("_")[1] })],
    }),
  ],
});

describe.each(transports)("%s", (transport) => {
  test("sign-ins, verified tokens and reads record nothing", async () => {
    const { server, target } = await plant(transport);
    const events = await recorded(server, async () => {
      const { key, secret, serviceId, token } = target;
      await server.as(undefined).services.authenticateService({ key, secret });
      await server.services.verifyServiceToken({ serviceToken: token });
      await server.services.listServiceSecrets({ serviceId });
    });
    expect(events).toEqual([]);
  });

  test("a rotation names each secret that it ends, and says how many", async () => {
    const { server, target } = await plant(transport);
    const { serviceId, secretId } = target;
    const { secretId: secondId } = await server.services.createServiceSecret({ serviceId });
    const events = await recorded(server, () => server.services.rotateServiceSecret({ serviceId }));
    expect(events).toMatchObject([{ payload: { ended_secrets: 2 } }]);
    expect(new Set(events[0]?.payload?.["ended_secret_ids"] as string[])).toEqual(new Set([secretId, secondId]));
  });

  test("revoking a secret that has ended is recorded once, for the sessions that it ends", async () => {
    const { server, target } = await plant(transport);
    const { serviceId, secretId } = target;
    await server.services.rotateServiceSecret({ serviceId });
    const events = await recorded(server, async () => {
      await server.services.revokeServiceSecret({ serviceId, secretId });
      await server.services.revokeServiceSecret({ serviceId, secretId });
    });
    expect(events).toMatchObject([
      { action: "service.secret.revoke", entityId: serviceId, payload: { secret_id: secretId } },
    ]);
  });
});
