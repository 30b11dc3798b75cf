import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { startBoth } from "../support/both-transports.ts";
import { expectRefusal } from "../support/refusals.ts";
import { addCapabilities, addRole, uniqueCapability } from "../support/roles.ts";
import { type TestService, startService, transports } from "../support/service.ts";
import { actionsOf, eventsOf, outcomes } from "../support/users.ts";

const keysOf = async ({ org }: TestService, prefix: string) =>
  (await org.listCapabilities({ prefix, pageSize: 1_000 })).capabilities.map(({ key }) => key);

describe.each(transports)("%s", (transport) => {
  test("a created capability is found as it was answered, and recorded as no tenant's", async () => {
    const server = await startService(transport);
    const key = uniqueCapability();
    const { capability } = await server.org.createCapability({ key });
    expect(capability).toMatchObject({ key });
    expect(capability?.capabilityId).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    expect(Math.abs(Number(capability?.createTime?.seconds) * 1_000 - Date.now())).toBeLessThan(60_000);
    expect((await server.org.listCapabilities({ prefix: key })).capabilities).toEqual([capability]);
    const [event, ...others] = await eventsOf(server, capability!.capabilityId);
    expect(event).toMatchObject({ action: "org.capability.create", entityKind: "capability", payload: { key } });
    expect(event?.tenantId).toBeUndefined();
    expect(others).toEqual([]);
  });

  test("a repeat with the id answers as the first did and writes nothing", async () => {
    const server = await startService(transport);
    const [capabilityId, key] = [randomUUID(), uniqueCapability()];
    const first = await server.org.createCapability({ capabilityId: capabilityId.toUpperCase(), key });
    expect(first.capability?.capabilityId).toBe(capabilityId);
    expect(await server.org.createCapability({ capabilityId, key })).toEqual(first);
    expect(await server.org.createCapability({ capabilityId: capabilityId.toUpperCase(), key })).toEqual(first);
    expect(await actionsOf(server, capabilityId)).toEqual(["org.capability.create"]);
  });

  test("an id with another key, and a key with another id or none, are taken", async () => {
    const server = await startService(transport);
    const [capabilityId, key] = [randomUUID(), uniqueCapability()];
    await server.org.createCapability({ capabilityId, key });
    const otherKey = server.org.createCapability({ capabilityId, key: uniqueCapability() });
    expect((await expectRefusal(otherKey, "CAPABILITY_ID_TAKEN")).metadata).toMatchObject({
      capability_id: capabilityId,
    });
    for (const other of [{ key }, { key, capabilityId: randomUUID() }]) {
      const { metadata } = await expectRefusal(server.org.createCapability(other), "CAPABILITY_KEY_TAKEN");
      expect(metadata).toMatchObject({ key });
    }
    const [third] = await addCapabilities(server, "third");
    await expectRefusal(server.org.createCapability({ capabilityId, key: third! }), "CAPABILITY_ID_TAKEN");
    expect(await actionsOf(server, capabilityId)).toEqual(["org.capability.create"]);
  });

  test("what is no key or no id is refused by its field", async () => {
    const { org } = await startService(transport);
    const bad = ["", ".", "a.", ".a", "a..b", "A", "a-b", "a b", "é", "a\0", "a\n", `${"a".repeat(128)}b`];
    for (const key of bad) {
      expect((await expectRefusal(org.createCapability({ key }), "INVALID_REQUEST")).fields).toEqual(["key"]);
      expect((await expectRefusal(org.deleteCapability({ key }), "INVALID_REQUEST")).fields).toEqual(["key"]);
    }
    const badId = org.createCapability({ capabilityId: "x", key: uniqueCapability() });
    expect((await expectRefusal(badId, "INVALID_REQUEST")).fields).toEqual(["capability_id"]);
    const badPrefix = org.listCapabilities({ prefix: "a".repeat(129) });
    expect((await expectRefusal(badPrefix, "INVALID_REQUEST")).fields).toEqual(["prefix"]);
  });

  test("a key may have 128 characters", async () => {
    const server = await startService(transport);
    const key = uniqueCapability("x".repeat(110));
    expect(key).toHaveLength(128);
    expect((await server.org.createCapability({ key })).capability?.key).toBe(key);
    await server.org.deleteCapability({ key });
  });

  test("only a service without tenant creates and deletes capabilities; a tenant's service lists them", async () => {
    const server = await startService(transport);
    const [key] = await addCapabilities(server, "edit");
    const { org } = await server.addService(["*"], await server.addTenant());
    await expectRefusal(org.createCapability({ key: uniqueCapability() }), "TENANT_MISMATCH");
    await expectRefusal(org.createCapability({ key: key! }), "TENANT_MISMATCH");
    await expectRefusal(org.deleteCapability({ key: key! }), "TENANT_MISMATCH");
    await expectRefusal(org.deleteCapability({ key: uniqueCapability() }), "TENANT_MISMATCH");
    expect((await org.listCapabilities({ prefix: key! })).capabilities).toHaveLength(1);
  });

  test("a prefix is taken literally, and keys are in the order of their bytes", async () => {
    const server = await startService(transport);
    const names = ["a.b", "a", "a_b", "axb", "a0", "b", "_a", "z9"];
    const keys = await addCapabilities(server, ...names);
    const space = keys[0]!.slice(0, -3);
    const sorted = ["_a", "a", "a.b", "a0", "a_b", "axb", "b", "z9"];
    const found = async (prefix: string) =>
      (await keysOf(server, space + prefix)).map((key) => key.slice(space.length));
    expect(await found("")).toEqual(sorted);
    expect(await found("a")).toEqual(sorted.filter((name) => name.startsWith("a")));
    expect(await found("a_")).toEqual(["a_b"]);
    expect(await found("a.")).toEqual(["a.b"]);
    for (const none of ["%", "a%", "A", "a\\", "a~", "é", "😀", "a😀", "zz"]) expect(await found(none)).toEqual([]);
  });

  test("pages have each key once, and a token belongs to its prefix", async () => {
    const server = await startService(transport);
    const keys = await addCapabilities(server, ...Array.from({ length: 7 }, (_, n) => `k${n}`));
    const prefix = keys[0]!.slice(0, -1);
    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await server.org.listCapabilities({ prefix, pageSize: 3, pageToken });
      seen.push(...page.capabilities.map(({ key }) => key));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(seen).toEqual(keys);

    const { nextPageToken } = await server.org.listCapabilities({ prefix, pageSize: 3 });
    const forged = (key: unknown) => {
      const [filters] = JSON.parse(Buffer.from(nextPageToken, "base64url").toString()) as [string, string];
      return Buffer.from(JSON.stringify([filters, key])).toString("base64url");
    };
    const tokens = [forged("a\0"), forged(7), forged(null), "x"];
    for (const request of [{ prefix: "a", pageToken: nextPageToken }, ...tokens.map((t) => ({ prefix, pageToken: t }))])
      expect((await expectRefusal(server.org.listCapabilities(request), "INVALID_REQUEST")).fields).toEqual([
        "page_token",
      ]);
    await expectRefusal(server.org.listCapabilities({ pageSize: -1 }), "INVALID_REQUEST");
  });

  test("a capability that a role has is in use, until the role has lost it", async () => {
    const server = await startService(transport);
    const [key] = await addCapabilities(server, "edit");
    const { tenantId, roleId } = await addRole(server, { capabilityKeys: [key!] });
    const { metadata } = await expectRefusal(server.org.deleteCapability({ key: key! }), "CAPABILITY_IN_USE");
    // Not whose role: it may be another tenant's.
    expect(metadata).toEqual({ key, request_id: metadata.request_id });
    await server.org.removeRoleCapabilities({ tenantId, roleId, capabilityKeys: [key!] });
    await server.org.deleteCapability({ key: key! });
    expect(await keysOf(server, key!)).toEqual([]);
  });

  test("a deleted capability is unknown, its key is free, and its deletion is recorded once", async () => {
    const server = await startService(transport);
    const key = uniqueCapability();
    const { capability } = await server.org.createCapability({ key });
    await server.org.deleteCapability({ key });
    expect((await expectRefusal(server.org.deleteCapability({ key }), "CAPABILITY_NOT_FOUND")).metadata).toMatchObject({
      key,
    });
    const [event] = await eventsOf(server, capability!.capabilityId);
    expect(event).toMatchObject({ action: "org.capability.delete", payload: { key } });
    expect(event?.tenantId).toBeUndefined();
    expect((await server.org.createCapability({ key })).capability?.capabilityId).not.toBe(capability!.capabilityId);
    expect(await actionsOf(server, capability!.capabilityId)).toEqual([
      "org.capability.delete",
      "org.capability.create",
    ]);
  });

  test("a role that was deleted keeps no capability in use", async () => {
    const server = await startService(transport);
    const [edit, view] = await addCapabilities(server, "edit", "view");
    const { tenantId, roleId } = await addRole(server, { capabilityKeys: [edit!, view!] });
    const other = await addRole(server, { capabilityKeys: [edit!] });
    await server.org.deleteRole({ tenantId, roleId });
    await expectRefusal(server.org.deleteCapability({ key: edit! }), "CAPABILITY_IN_USE");
    await server.org.deleteRole({ tenantId: other.tenantId, roleId: other.roleId });
    await server.org.deleteCapability({ key: edit! });
    const [event] = await eventsOf(server, roleId);
    expect(event).toMatchObject({ action: "org.role.delete", payload: { capability_keys: [edit, view] } });
  });
});

test("of 20 creates with one key at once exactly one wins", async () => {
  const server = await startBoth();
  const key = uniqueCapability();
  const creates = Array.from({ length: 20 }, (_, n) =>
    server.org.createCapability(n % 2 ? { key } : { key, capabilityId: randomUUID() }),
  );
  expect(await outcomes(creates)).toEqual({ answered: 1, reasons: Array(19).fill("CAPABILITY_KEY_TAKEN") });
  const capabilityId = randomUUID();
  const repeats = Array.from({ length: 20 }, () =>
    server.org.createCapability({ capabilityId, key: `${key}.repeated` }),
  );
  expect(await outcomes(repeats)).toEqual({ answered: 20, reasons: [] });
  expect(await actionsOf(server, capabilityId)).toEqual(["org.capability.create"]);
});

test("deleting a capability while roles take it leaves either no capability or no role without it", async () => {
  const server = await startBoth();
  const tenantId = await server.addTenant();
  const roles = await Promise.all(Array.from({ length: 8 }, () => addRole(server, { tenantId })));
  for (let round = 0; round < 15; round++) {
    const [key] = await addCapabilities(server, "edit");
    const capabilityKeys = [key!];
    const take = async (n: number) => {
      const role = { tenantId, roleId: roles[n % roles.length]!.roleId, capabilityKeys };
      if (n % 3 === 0) return server.org.createRole({ tenantId, label: randomUUID(), capabilityKeys });
      return n % 3 === 1 ? server.org.addRoleCapabilities(role) : server.org.updateRole(role);
    };
    const before = Array.from({ length: round }, (_, n) => take(n));
    const removal = outcomes([server.org.deleteCapability({ key: key! })]);
    const after = Array.from({ length: 20 - round }, (_, n) => take(round + n));
    const taken = await outcomes([...before, ...after]);
    const { answered: deleted, reasons } = await removal;
    if (deleted) {
      expect(taken).toEqual({ answered: 0, reasons: Array(20).fill("CAPABILITY_NOT_FOUND") });
    } else {
      expect(reasons).toEqual(["CAPABILITY_IN_USE"]);
      expect(taken).toEqual({ answered: 20, reasons: [] });
    }
    expect(await keysOf(server, key!)).toEqual(deleted ? [] : [key]);
  }
});
