import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { heldUp } from "../support/held-up.ts";
import { BCRYPT, FULL, type Row, importRows, importedIds, outcomesOf } from "../support/imports.ts";
import { expectRefusal } from "../support/refusals.ts";
import { startService, transports } from "../support/service.ts";
import { countUsers } from "../support/users.ts";

describe.each(transports)("%s", (transport) => {
  test.each<readonly [string, string, Row]>([
    ["INVALID_REQUEST", "nothing", {}],
    ["INVALID_REQUEST", "a name alone", { displayName: "Nobody" }],
    ["INVALID_REQUEST", "no e-mail address", { email: "no address" }],
    ["INVALID_REQUEST", "an empty e-mail address", { email: "" }],
    ["INVALID_REQUEST", "no phone number", { phone: "5551234" }],
    ["INVALID_REQUEST", "no e-mail address beside a phone number", { email: "none", phone: "+14155552679" }],
    ["INVALID_REQUEST", "no phone number beside an e-mail address", { email: "new@example.com", phone: "none" }],
    ["INVALID_REQUEST", "no phone that could be verified", { email: "new@example.com", phoneVerified: true }],
    ["INVALID_REQUEST", "no e-mail that could be verified", { phone: "+14155552679", emailVerified: true }],
    ["INVALID_REQUEST", "an erased person", { email: "new@example.com", state: UserState.ERASED }],
    [
      "PASSWORD_HASH_UNSUPPORTED",
      "MD5",
      { email: "new@example.com", passwordHash: "5f4dcc3b5aa765d61d8327deb882cf99" },
    ],
    ["PASSWORD_HASH_UNSUPPORTED", "days", { email: "new@example.com", passwordHash: BCRYPT.replace("$04$", "$31$") }],
    ["EMAIL_TAKEN", "another name", { email: "ann@example.com", displayName: "Other" }],
    ["EMAIL_TAKEN", "another id", { userId: randomUUID(), email: "ANN@example.com" }],
    ["EMAIL_TAKEN", "another phone", { email: "ann@example.com", phone: "+14155552679" }],
    ["EMAIL_TAKEN", "less verified", { email: "ann@example.com", emailVerified: false }],
    ["EMAIL_TAKEN", "another state", { email: "ann@example.com", state: UserState.ACTIVE }],
    ["EMAIL_TAKEN", "another account", { email: "ann@example.com", googleSubject: "another" }],
    ["EMAIL_TAKEN", "another time", { email: "ann@example.com", createTime: timestampFromMs(0) }],
    ["PHONE_TAKEN", "another e-mail", { email: "new@example.com", phone: "+14155552671" }],
    ["PHONE_TAKEN", "another id", { userId: randomUUID(), phone: "+1 (415) 555-2671" }],
    ["IDENTITY_TAKEN", "another e-mail", { email: "new@example.com", googleSubject: FULL.googleSubject }],
  ])("a row is %s (%s) and keeps back no other", async (reason, _, row) => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    await importRows(server, tenantId, [FULL]);
    const around = [{ email: "before@example.com" }, row, { email: "after@example.com" }];
    const { ids, outcomes } = await importRows(server, tenantId, around);
    expect(outcomes).toEqual(["CREATED", reason, "CREATED"]);
    expect(ids[1]).toBe(row.userId ?? "");
    expect(await countUsers(server, tenantId)).toBe(3);
    expect(await importedIds(server, tenantId)).toHaveLength(3);
  });

  test("an id stands for one user of one tenant; contacts and accounts are each tenant's own", async () => {
    const server = await startService(transport);
    const [tenantId, other] = [await server.addTenant(), await server.addTenant()];
    const userId = randomUUID();
    await importRows(server, tenantId, [{ ...FULL, userId }]);
    expect(await outcomesOf(server, other, [{ ...FULL, userId }, { email: FULL.email, userId }, FULL])).toEqual([
      "USER_ID_TAKEN",
      "USER_ID_TAKEN",
      "CREATED",
    ]);
    expect(await countUsers(server, tenantId)).toBe(1);
  });

  test("rows of one call meet each other: the first stands", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const [ann, bob] = [randomUUID(), randomUUID()];
    const { ids, outcomes } = await importRows(server, tenantId, [
      { userId: ann, email: "zoe@example.com", displayName: "Zoe" },
      { userId: ann, email: "Zoe@example.com" },
      { email: "zoe@example.com", displayName: "Zoe" },
      { userId: ann, email: "ann@example.com" },
      { userId: bob, email: "zoe@example.com" },
      { email: "no address" },
      { phone: "+14155552671", googleSubject: "1" },
      { email: "bob@example.com", googleSubject: "1" },
      { email: "bob@example.com" },
      { email: "eve@example.com", googleSubject: "\u00e9" },
    ]);
    expect(outcomes).toEqual([
      "CREATED",
      "UNCHANGED",
      "UNCHANGED",
      "USER_ID_TAKEN",
      "EMAIL_TAKEN",
      "INVALID_REQUEST",
      "CREATED",
      "IDENTITY_TAKEN",
      "CREATED",
      "INVALID_REQUEST",
    ]);
    expect(ids.slice(0, 6)).toEqual([ann, ann, ann, ann, bob, ""]);
    expect(await countUsers(server, tenantId)).toBe(3);
  });

  test.each<readonly [string, readonly Row[]]>([
    ["users", []],
    ["users", Array.from({ length: 1_001 }, () => ({ email: "a@example.com" }))],
    ["users[1].user_id", [{ email: "a@example.com" }, { userId: "ann" }]],
    ["users[0].email", [{ email: "a".repeat(255) }]],
    ["users[0].display_name", [{ email: "a@example.com", displayName: "" }]],
    ["users[0].state", [{ email: "a@example.com", state: UserState.UNSPECIFIED }]],
  ])("a call whose %s breaks its rule is refused whole", async (field, users) => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const refused = await expectRefusal(server.auth.importUsers({ tenantId, users: [...users] }), "INVALID_REQUEST");
    expect(refused.fields).toEqual([field]);
    expect(await countUsers(server, tenantId)).toBe(0);
  });

  test("an unknown tenant takes nobody; a suspended one does", async () => {
    const server = await startService(transport);
    const unknown = randomUUID();
    const refused = await expectRefusal(
      server.auth.importUsers({ tenantId: unknown, users: [FULL] }),
      "TENANT_NOT_FOUND",
    );
    expect(refused.metadata).toMatchObject({ tenant_id: unknown });
    const tenantId = await server.addTenant();
    await server.org.suspendTenant({ tenantId });
    expect(await outcomesOf(server, tenantId, [FULL])).toEqual(["CREATED"]);
  });

  test("who takes a contact meanwhile keeps back that row alone", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const takesContact = sql.unsafe`
      INSERT INTO users (user_id, tenant_id, email_addr, user_state_code)
      VALUES (${randomUUID()}::uuid, ${tenantId}::uuid, 'ann@example.com', 'active')`;
    const rows = [{ email: "no address" }, { email: "before@example.com" }, FULL, { email: "ANN@example.com" }];
    const { outcomes } = await heldUp(server, takesContact, () => importRows(server, tenantId, rows));
    expect(outcomes).toEqual(["INVALID_REQUEST", "CREATED", "EMAIL_TAKEN", "UNCHANGED"]);
    expect(await countUsers(server, tenantId)).toBe(2);
    expect(await importedIds(server, tenantId)).toHaveLength(1);
  });

  test("of 20 people with one Google account, imported at once, one stands and nothing is left of the others", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const people = Array.from({ length: 20 }, (_, n) => ({
      email: `person${n}@example.com`,
      googleSubject: "one",
      passwordHash: BCRYPT,
    }));
    const answers = await Promise.all(people.map((row) => outcomesOf(server, tenantId, [row])));
    expect(answers.flat().toSorted()).toEqual(["CREATED", ...Array<string>(19).fill("IDENTITY_TAKEN")]);
    expect(await countUsers(server, tenantId)).toBe(1);
    expect(await importedIds(server, tenantId)).toHaveLength(1);
  });
});
