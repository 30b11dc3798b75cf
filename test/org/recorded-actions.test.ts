import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { AuthService } from "../../src/gen/auth/v1/auth_pb.ts";
import { recorded } from "../support/recorded.ts";
import { rpcs } from "../support/rpcs.ts";
import { type SignedInService, type TestService, startService, transports, uniqueKey } from "../support/service.ts";

interface Stage {
  readonly server: TestService;
  readonly tenantId: string;
  /** A service of the tenant with one secret, one session and the permission `a.read`. */
  readonly target: SignedInService;
}

interface Mutation {
  readonly rpc: string;
  readonly action: string;
  /** Done first, where what the RPC undoes must be there. */
  readonly before?: (stage: Stage) => Promise<unknown>;
  readonly call: (stage: Stage) => Promise<unknown>;
  readonly payload?: (stage: Stage) => Readonly<Record<string, unknown>>;
  /** A repeat changes something again: a secret more. */
  readonly repeats?: true;
}

const id = ({ target }: Stage) => ({ serviceId: target.serviceId });
const secretOf = ({ target }: Stage) => ({ serviceId: target.serviceId, secretId: target.secretId });
const sessionOf = ({ target }: Stage) => target.token.split("_")[1];

const created = { tenantId: randomUUID(), label: "Created" };
const registered = { serviceId: randomUUID(), key: uniqueKey(), label: "Registered", permissions: ["b", "a"] };

const MUTATIONS: readonly Mutation[] = [
  { rpc: "CreateTenant", action: "org.tenant.create", call: ({ server }) => server.org.createTenant(created) },
  {
    rpc: "UpdateTenant",
    action: "org.tenant.update",
    call: ({ server, tenantId }) => server.org.updateTenant({ tenantId, label: "Renamed" }),
    payload: () => ({ fields: ["label"] }),
  },
  {
    rpc: "SuspendTenant",
    action: "org.tenant.suspend",
    call: ({ server, tenantId }) => server.org.suspendTenant({ tenantId }),
  },
  {
    rpc: "ActivateTenant",
    action: "org.tenant.activate",
    before: ({ server, tenantId }) => server.org.suspendTenant({ tenantId }),
    call: ({ server, tenantId }) => server.org.activateTenant({ tenantId }),
  },
  {
    rpc: "RegisterService",
    action: "service.register",
    call: ({ server }) => server.services.registerService(registered),
    payload: () => ({ key: registered.key, permissions: ["a", "b"] }),
  },
  {
    rpc: "UpdateService",
    action: "service.update",
    call: (stage) => stage.server.services.updateService({ ...id(stage), label: "Renamed" }),
    payload: () => ({ fields: ["label"] }),
  },
  {
    rpc: "DisableService",
    action: "service.disable",
    call: (stage) => stage.server.services.disableService(id(stage)),
  },
  {
    rpc: "EnableService",
    action: "service.enable",
    before: (stage) => stage.server.services.disableService(id(stage)),
    call: (stage) => stage.server.services.enableService(id(stage)),
  },
  {
    rpc: "CreateServiceSecret",
    action: "service.secret.create",
    call: (stage) => stage.server.services.createServiceSecret(id(stage)),
    repeats: true,
  },
  {
    rpc: "RotateServiceSecret",
    action: "service.secret.rotate",
    call: (stage) => stage.server.services.rotateServiceSecret(id(stage)),
    payload: ({ target }) => ({ ended_secret_ids: [target.secretId], overlap_ms: 0 }),
    repeats: true,
  },
  {
    rpc: "RevokeServiceSecret",
    action: "service.secret.revoke",
    call: (stage) => stage.server.services.revokeServiceSecret(secretOf(stage)),
    payload: ({ target }) => ({ secret_id: target.secretId }),
  },
  {
    rpc: "GrantServicePermissions",
    action: "service.permissions.grant",
    call: (stage) => stage.server.services.grantServicePermissions({ ...id(stage), permissions: ["c", "a.read", "b"] }),
    payload: () => ({ permissions: ["b", "c"] }),
  },
  {
    rpc: "RevokeServicePermissions",
    action: "service.permissions.revoke",
    call: (stage) => stage.server.services.revokeServicePermissions({ ...id(stage), permissions: ["a.read", "b"] }),
    payload: () => ({ permissions: ["a.read"] }),
  },
  {
    rpc: "RevokeServiceSession",
    action: "service.session.revoke",
    call: (stage) => {
      const selector = { case: "serviceToken", value: stage.target.token } as const;
      return stage.server.services.revokeServiceSession({ selector });
    },
    payload: (stage) => ({ session_id: sessionOf(stage) }),
  },
];

test("every RPC that changes something is held to the table of actions", () => {
  const silent = /^(Get|List|Watch|Check|BatchCheck|Explain|Verify|Authenticate)/;
  const changing = rpcs
    .filter(({ name, method }) => method.parent.name !== AuthService.name && !silent.test(name))
    .map(({ name }) => name);
  expect(MUTATIONS.map(({ rpc }) => rpc).sort()).toEqual(changing.sort());
});

const plant = async (server: TestService): Promise<Stage> => {
  const tenantId = await server.addTenant();
  return { server, tenantId, target: await server.addService(["a.read"], tenantId) };
};

describe.each(transports)("%s", (transport) => {
  test.each(MUTATIONS)("$rpc writes one event, $action", async ({ action, before, call, payload, repeats }) => {
    const server = await startService(transport);
    const stage = await plant(server);
    const { services: seen } = await server.services.listServices({ pageSize: 1_000 });
    const root = seen.find(({ key }) => key === "root");
    await before?.(stage);
    const events = await recorded(server, () => call(stage));
    expect(events).toHaveLength(1);
    const isTenant = action.startsWith("org.tenant.");
    const tenantId = { "org.tenant.create": created.tenantId, "service.register": undefined }[action];
    const entityId = { "org.tenant.create": created.tenantId, "service.register": registered.serviceId }[action];
    expect(events[0]).toMatchObject({
      action,
      entityKind: isTenant ? "tenant" : "service",
      entityId: entityId ?? (isTenant ? stage.tenantId : stage.target.serviceId),
      ...(action !== "service.register" && { tenantId: tenantId ?? stage.tenantId }),
      actorServiceId: root?.serviceId,
      payload: payload?.(stage) ?? {},
    });
    expect(await recorded(server, () => call(stage))).toHaveLength(repeats ? 1 : 0);
  });

  test("what is no mutation in the record's sense writes no event: sign-ins, verified tokens, reads", async () => {
    const server = await startService(transport);
    const { target, tenantId } = await plant(server);
    const events = await recorded(server, async () => {
      const { key, secret, serviceId, token } = target;
      await server.as(undefined).services.authenticateService({ key, secret });
      await server.services.verifyServiceToken({ serviceToken: token });
      await server.services.listServiceSecrets({ serviceId });
      await server.org.getTenant({ tenantId });
    });
    expect(events).toEqual([]);
  });
});
