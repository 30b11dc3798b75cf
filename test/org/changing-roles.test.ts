import fc from "fast-check";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { startBoth } from "../support/both-transports.ts";
import { expectRefusal } from "../support/refusals.ts";
import { addCapabilities, addRole, uniqueCapability } from "../support/roles.ts";
import { startService, transports } from "../support/service.ts";
import { actionsOf, eventsOf, outcomes } from "../support/users.ts";

const mask = (...paths: string[]) => ({ updateMask: { paths } });

describe.each(transports)("%s", (transport) => {
  test("an update changes what its mask names, or without one what is sent", async () => {
    const server = await startService(transport);
    const [edit, view] = await addCapabilities(server, "edit", "view");
    const { tenantId, roleId } = await addRole(server, { label: "One", capabilityKeys: [edit!] });
    const update = async (request: object) => {
      const { role } = await server.org.updateRole({ tenantId, roleId, ...request });
      expect((await server.org.getRole({ tenantId, roleId })).role).toEqual(role);
      return [role?.label, role?.capabilityKeys];
    };
    expect(await update({ label: "Two" })).toEqual(["Two", [edit]]);
    expect(await update({ capabilityKeys: [view, view] })).toEqual(["Two", [view]]);
    expect(await update({ label: "Three", capabilityKeys: [edit], ...mask("label") })).toEqual(["Three", [view]]);
    expect(await update({ label: "Four", capabilityKeys: [edit], ...mask("capability_keys") })).toEqual([
      "Three",
      [edit],
    ]);
    expect(await update({ label: "Four", capabilityKeys: [view, edit], ...mask("*") })).toEqual(["Four", [edit, view]]);
    expect(await update({ ...mask("capability_keys") })).toEqual(["Four", []]);
    expect(await update({})).toEqual(["Four", []]);
    expect(await actionsOf(server, roleId)).toEqual([...Array<string>(6).fill("org.role.update"), "org.role.create"]);
  });

  test("a change is recorded with what was added and taken; what changes nothing is not recorded", async () => {
    const server = await startService(transport);
    const [a, b, c] = await addCapabilities(server, "a", "b", "c");
    const { tenantId, roleId, label } = await addRole(server, { capabilityKeys: [a!] });
    const role = { tenantId, roleId };
    const payloads = async () => (await eventsOf(server, roleId)).map(({ payload }) => payload);
    const changes = (fields: string[], added: unknown[], removed: unknown[]) => ({
      fields,
      added_capability_keys: added,
      removed_capability_keys: removed,
    });
    await server.org.addRoleCapabilities({ ...role, capabilityKeys: [c!, a!, b!, c!] });
    expect((await payloads())[0]).toMatchObject(changes(["capability_keys"], [b, c], []));
    await server.org.removeRoleCapabilities({ ...role, capabilityKeys: [c!, uniqueCapability(), a!] });
    expect((await payloads())[0]).toMatchObject(changes(["capability_keys"], [], [a, c]));
    await server.org.updateRole({ ...role, label: "Renamed", capabilityKeys: [c!] });
    expect((await payloads())[0]).toMatchObject(changes(["label", "capability_keys"], [c], [b]));
    await server.org.updateRole({ ...role, label });
    expect((await payloads())[0]).toMatchObject(changes(["label"], [], []));
    expect(await payloads()).toHaveLength(5);

    const same = (await server.org.getRole(role)).role!;
    expect((await server.org.addRoleCapabilities({ ...role, capabilityKeys: [c!] })).role).toEqual(same);
    expect((await server.org.removeRoleCapabilities({ ...role, capabilityKeys: [a!, b!] })).role).toEqual(same);
    expect((await server.org.updateRole({ ...role, label, capabilityKeys: [c!, c!] })).role).toEqual(same);
    expect(await payloads()).toHaveLength(5);
  });

  test("an update that is refused changes nothing, neither label nor capabilities", async () => {
    const server = await startService(transport);
    const [a, b] = await addCapabilities(server, "a", "b");
    const before = await addRole(server, { capabilityKeys: [a!] });
    const { tenantId, roleId } = before;
    const { label: taken } = await addRole(server, { tenantId });
    const toTaken = server.org.updateRole({ tenantId, roleId, label: taken, capabilityKeys: [b!] });
    await expectRefusal(toTaken, "ROLE_LABEL_TAKEN");
    const key = uniqueCapability();
    const toUnknown = server.org.updateRole({ tenantId, roleId, label: "New", capabilityKeys: [b!, key] });
    expect((await expectRefusal(toUnknown, "CAPABILITY_NOT_FOUND")).metadata).toMatchObject({ key });
    const adding = server.org.addRoleCapabilities({ tenantId, roleId, capabilityKeys: [b!, key] });
    expect((await expectRefusal(adding, "CAPABILITY_NOT_FOUND")).metadata).toMatchObject({ key });
    expect((await server.org.getRole({ tenantId, roleId })).role).toEqual(before);
    expect(await actionsOf(server, roleId)).toEqual(["org.role.create"]);
  });

  test("a role has at most 1,000 capabilities, however many requests add them", async () => {
    const server = await startService(transport);
    const space = uniqueCapability("n");
    const keys = Array.from({ length: 1_001 }, (_, n) => `${space}${1_000 + n}`);
    await server.pool.query(sql.unsafe`
      INSERT INTO capabilities (cap_id, cap_key)
      SELECT gen_random_uuid(), k FROM unnest(${sql.array(keys, "text")}) AS k`);
    const { tenantId, roleId } = await addRole(server, { capabilityKeys: keys.slice(0, 999) });
    const add = (...capabilityKeys: string[]) => server.org.addRoleCapabilities({ tenantId, roleId, capabilityKeys });
    const [last, beyond] = keys.slice(999);
    expect((await expectRefusal(add(last!, beyond!), "INVALID_REQUEST")).fields).toEqual(["capability_keys"]);
    expect((await add(last!, keys[0]!)).role?.capabilityKeys).toEqual(keys.slice(0, 1_000));
    expect((await expectRefusal(add(beyond!), "INVALID_REQUEST")).fields).toEqual(["capability_keys"]);
    const others = { tenantId, roleId, capabilityKeys: keys.slice(1) };
    expect((await server.org.updateRole(others)).role?.capabilityKeys).toEqual(keys.slice(1));
    expect((await server.org.removeRoleCapabilities(others)).role?.capabilityKeys).toEqual([]);
  });

  test("a role that was loaded with more than 1,000 is renamed and loses some, and takes none", async () => {
    const server = await startService(transport);
    const space = uniqueCapability("n");
    const keys = Array.from({ length: 1_003 }, (_, n) => `${space}${1_000 + n}`);
    const { tenantId, roleId } = await addRole(server);
    await server.pool.query(sql.unsafe`
      WITH loaded AS (
        INSERT INTO capabilities (cap_id, cap_key)
        SELECT gen_random_uuid(), k FROM unnest(${sql.array(keys, "text")}) AS k
        RETURNING cap_id
      )
      INSERT INTO role_capabilities (role_id, cap_id) SELECT ${roleId}::uuid, l.cap_id FROM loaded l`);
    const [first, ...others] = keys;
    const one = { tenantId, roleId, capabilityKeys: [first!] };
    expect((await server.org.updateRole({ tenantId, roleId, label: "Loaded" })).role?.capabilityKeys).toEqual(keys);
    expect((await server.org.removeRoleCapabilities(one)).role?.capabilityKeys).toEqual(others);
    expect((await expectRefusal(server.org.addRoleCapabilities(one), "INVALID_REQUEST")).fields).toEqual([
      "capability_keys",
    ]);
  });
});

test("two roles that want each other's label at once are refused or answered, never stuck", async () => {
  const server = await startBoth();
  const tenantId = await server.addTenant();
  const [one, other] = [await addRole(server, { tenantId }), await addRole(server, { tenantId })];
  for (let round = 0; round < 20; round++) {
    const swap = await outcomes([
      server.org.updateRole({ tenantId, roleId: one.roleId, label: other.label }),
      server.org.updateRole({ tenantId, roleId: other.roleId, label: one.label }),
    ]);
    expect(swap).toEqual({ answered: 0, reasons: ["ROLE_LABEL_TAKEN", "ROLE_LABEL_TAKEN"] });
  }
});

test("20 parallel changes to one role lose nothing", async () => {
  const server = await startBoth();
  const keys = await addCapabilities(server, ...Array.from({ length: 20 }, (_, n) => `k${10 + n}`));
  const [kept, gone] = [keys.slice(0, 10), keys.slice(10)];
  const { tenantId, roleId } = await addRole(server, { capabilityKeys: gone });
  await Promise.all([
    ...kept.map((key) => server.org.addRoleCapabilities({ tenantId, roleId, capabilityKeys: [key] })),
    ...gone.map((key) => server.org.removeRoleCapabilities({ tenantId, roleId, capabilityKeys: [key] })),
  ]);
  expect((await server.org.getRole({ tenantId, roleId })).role?.capabilityKeys).toEqual(kept);
  expect(await actionsOf(server, roleId)).toHaveLength(21);
});

test("of 20 sets that a role is given at once one is what it has, and none is mixed with another", async () => {
  const server = await startBoth();
  const keys = await addCapabilities(server, ...Array.from({ length: 20 }, (_, n) => `k${10 + n}`));
  const { tenantId, roleId } = await addRole(server);
  const answers = await Promise.all(
    keys.map((key) => server.org.updateRole({ tenantId, roleId, capabilityKeys: [key] })),
  );
  expect(answers.map(({ role }) => role?.capabilityKeys)).toEqual(keys.map((key) => [key]));
  expect((await server.org.getRole({ tenantId, roleId })).role?.capabilityKeys).toHaveLength(1);
});

test("whatever is added, taken and set, a role has what a set would have, and one event for each change", async () => {
  const server = await startBoth();
  const keys = await addCapabilities(server, "a", "a.b", "a_b", "b", "c");
  const operation = fc.record({
    verb: fc.constantFrom("add", "remove", "set"),
    some: fc.array(fc.constantFrom(...keys)),
  });
  const perform = async (role: { tenantId: string; roleId: string }, verb: string, capabilityKeys: string[]) => {
    const request = { ...role, capabilityKeys };
    if (verb === "set") return server.org.updateRole({ ...request, ...mask("capability_keys") });
    return verb === "add" ? server.org.addRoleCapabilities(request) : server.org.removeRoleCapabilities(request);
  };
  const expected = (verb: string, before: readonly string[], some: readonly string[]) => {
    if (verb === "remove") return before.filter((key) => !some.includes(key));
    return [...new Set(verb === "set" ? some : [...before, ...some])].sort();
  };
  const tenantId = await server.addTenant();
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { maxLength: 12 }), async (operations) => {
      const { roleId } = await addRole(server, { tenantId });
      let model: readonly string[] = [];
      let changes = 0;
      for (const { verb, some } of operations.filter(({ verb, some }) => verb === "set" || some.length > 0)) {
        const next = expected(verb, model, some);
        if (next.join() !== model.join()) changes++;
        model = next;
        const { role } = await perform({ tenantId, roleId }, verb, some);
        expect(role?.capabilityKeys).toEqual(model);
      }
      expect(await actionsOf(server, roleId)).toHaveLength(changes + 1);
    }),
    { numRuns: 25 },
  );
});
