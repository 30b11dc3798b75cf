import { randomUUID } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { InvitationState } from "../../src/gen/org/v1/org_pb.ts";
import { type NewInvitation, actingFor, addTarget, expireIn, invite } from "../support/invitations.ts";
import { expectRefusal } from "../support/refusals.ts";
import { launchService, startService, transports } from "../support/service.ts";
import { PEPPERS } from "../support/root.ts";
import { actionsOf, addUser, eventsOf, outcomes, uniqueEmail } from "../support/users.ts";

const byToken = (value: string) => ({ selector: { case: "inviteToken", value } as const });
const byId = (value: string) => ({ selector: { case: "invitationId", value } as const });

const MAC = /^inv_[0-9a-f-]{36}_[A-Za-z0-9_-]{43}$/;

describe.each(transports)("%s", (transport) => {
  test("an invitation is found by its token and its id", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const { invitation, token } = await invite(server, { tenantId, email: " Ann@Example.COM " });
    expect(invitation).toMatchObject({ tenantId, email: "ann@example.com", state: InvitationState.PENDING });
    for (const unset of ["phone", "invitedByUserId", "roleId", "nodeId", "acceptTime"]) {
      expect(invitation).not.toHaveProperty(unset);
    }
    expect(token).toMatch(MAC);
    expect((await server.org.getInvitation(byToken(token))).invitation).toEqual(invitation);
    expect((await server.org.getInvitation(byId(invitation.invitationId.toUpperCase()))).invitation).toEqual(
      invitation,
    );
  });

  test("it names its role and node, who invited, and a phone in E.164", async () => {
    const server = await startService(transport);
    const inviter = await addUser(server);
    const { tenantId, userId } = inviter;
    const target = await addTarget(server, tenantId);
    const acting = await actingFor(server, inviter);
    const request = { tenantId, phone: "+49 (1512) 3456789", ...target };
    const { invitation } = await acting.org.createInvitation(request);
    expect(invitation).toMatchObject({ phone: "+4915123456789", invitedByUserId: userId, ...target });
    const [event, ...others] = await eventsOf(server, invitation!.invitationId);
    expect(others).toEqual([]);
    expect(event).toMatchObject({ action: "org.invitation.create", entityKind: "invitation", tenantId });
    expect(event?.actorUserId).toBe(userId);
    expect(event?.payload).toMatchObject({ role_id: target.roleId, node_id: target.nodeId });
    expect(JSON.stringify(event?.payload)).not.toContain("15123456789");
  });

  test.each([
    ["named", { ttl: { seconds: 90n, nanos: 500_000_000 } }, 90_500],
    ["not named: 7 days", {}, 7 * 24 * 3_600_000],
  ])("its life span is %s", async (_, ttl, ms) => {
    const { expireTime, createTime } = (await invite(await startService(transport), ttl)).invitation;
    expect(timestampMs(expireTime!) - timestampMs(createTime!)).toBe(ms);
  });

  const refusals: readonly (readonly [string, NewInvitation, readonly string[]])[] = [
    ["no contact", {}, ["email", "phone"]],
    ["two contacts", { email: "a@example.com", phone: "+4915123456789" }, ["email", "phone"]],
    ["no e-mail", { email: "ann" }, ["email"]],
    ["no phone", { phone: "123" }, ["phone"]],
    ["a role without node", { email: "a@example.com", roleId: randomUUID() }, ["node_id"]],
    ["a node without role", { email: "a@example.com", nodeId: randomUUID() }, ["role_id"]],
    ["too short a time", { email: "a@example.com", ttl: { seconds: 0n, nanos: 999_999_999 } }, ["ttl"]],
    ["too long a time", { email: "a@example.com", ttl: { seconds: 31_536_001n } }, ["ttl"]],
  ];
  test.each(refusals)("%s is refused with its field", async (_, request, fields) => {
    const { org, addTenant } = await startService(transport);
    const tenantId = await addTenant();
    const answer = await expectRefusal(org.createInvitation({ ...request, tenantId }), "INVALID_REQUEST");
    expect(answer.fields).toEqual(fields);
  });

  test("what it names must be there, in its tenant", async () => {
    const server = await startService(transport);
    const [tenantId, otherTenant] = [await server.addTenant(), await server.addTenant()];
    const own = await addTarget(server, tenantId);
    const others = await addTarget(server, otherTenant);
    const create = (request: NewInvitation) =>
      server.org.createInvitation({ tenantId, email: uniqueEmail(), ...own, ...request });
    await expectRefusal(create({ tenantId: randomUUID() }), "TENANT_NOT_FOUND");
    for (const roleId of [others.roleId, randomUUID()]) await expectRefusal(create({ roleId }), "ROLE_NOT_FOUND");
    for (const nodeId of [others.nodeId, randomUUID()]) await expectRefusal(create({ nodeId }), "NODE_NOT_FOUND");
    await server.org.deleteRole({ tenantId, roleId: own.roleId });
    await expectRefusal(create({}), "ROLE_NOT_FOUND");
  });

  test("a role is offered, and its token shown again, only to who may assign", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const target = await addTarget(server, tenantId);
    const { org } = await server.addService(["org.invitation.write"], tenantId);
    const plain = { tenantId, email: uniqueEmail() };
    await org.createInvitation(plain);
    const barred = await expectRefusal(org.createInvitation({ ...plain, ...target }), "PERMISSION_MISSING");
    expect(barred.metadata).toMatchObject({ permission: "org.assignment.write" });
    const { invitation } = await invite(server, { ...plain, ...target });
    const repeat = { ...plain, invitationId: invitation.invitationId };
    await expectRefusal(org.createInvitation(repeat), "PERMISSION_MISSING");
    const inviter = await server.addService(["org.invitation.write", "org.assignment.write"], tenantId);
    await inviter.org.createInvitation({ ...plain, ...target });
    await inviter.org.createInvitation(repeat);
  });

  test("a repeat with the same id and content answers the same token and writes nothing", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const target = await addTarget(server, tenantId);
    const [invitationId, email] = [randomUUID(), uniqueEmail()];
    const request = { tenantId, invitationId, email, ...target, ttl: { seconds: 60n } };
    const first = await server.org.createInvitation({ ...request, invitationId: invitationId.toUpperCase() });
    const repeats = await Promise.all([
      server.org.createInvitation({ ...request, email: email.toUpperCase() }),
      server.org.createInvitation({
        tenantId: tenantId.toUpperCase(),
        invitationId: invitationId.toUpperCase(),
        email,
      }),
    ]);
    for (const repeat of repeats) expect(repeat).toEqual(first);
    const otherTenant = await server.addTenant();
    const others: readonly NewInvitation[] = [
      { email: uniqueEmail() },
      { email: undefined, phone: "+4915123456789" },
      { roleId: (await addTarget(server, tenantId)).roleId },
      { nodeId: (await addTarget(server, tenantId)).nodeId },
      { ttl: { seconds: 61n } },
    ];
    for (const other of others) {
      const { metadata } = await expectRefusal(
        server.org.createInvitation({ ...request, ...other } as NewInvitation),
        "INVITATION_ID_TAKEN",
      );
      expect(metadata).toMatchObject({ invitation_id: invitationId });
    }
    const elsewhere = { tenantId: otherTenant, invitationId, email };
    await expectRefusal(server.org.createInvitation(elsewhere), "INVITATION_ID_TAKEN");
    await server.org.revokeInvitation({ tenantId, invitationId });
    await server.org.deleteRole({ tenantId, roleId: target.roleId });
    const late = await server.org.createInvitation(request);
    expect(late.inviteToken).toBe(first.inviteToken);
    expect(late.invitation?.state).toBe(InvitationState.REVOKED);
    expect(await actionsOf(server, invitationId)).toEqual(["org.invitation.revoke", "org.invitation.create"]);
  });

  test("20 creates at once with one id make one invitation, with one token", async () => {
    const server = await startService(transport);
    const request = { tenantId: await server.addTenant(), invitationId: randomUUID(), email: uniqueEmail() };
    const answers = await Promise.all(Array.from({ length: 20 }, () => server.org.createInvitation(request)));
    expect(new Set(answers.map(({ inviteToken }) => inviteToken)).size).toBe(1);
    expect(await actionsOf(server, request.invitationId)).toEqual(["org.invitation.create"]);
  });

  test("a token that is forged in any part finds nothing, and none stands in the database", async () => {
    const server = await startService(transport);
    const { invitation, token, tenantId } = await invite(server);
    const other = await invite(server, { tenantId });
    const id = invitation.invitationId;
    const mac = token.slice(`inv_${id}_`.length);
    // The last of 43 characters has two bits to spare: its neighbour spells the same bytes.
    const respelled = `${token.slice(0, -1)}${String.fromCharCode(token.charCodeAt(token.length - 1) + 1)}`;
    for (const forged of [
      "x",
      `inv_${id}`,
      `inv_${id}_${"A".repeat(43)}`,
      `inv_${other.invitation.invitationId}_${mac}`,
      `inv_${randomUUID()}_${mac}`,
      `inv_${id.toUpperCase()}_${mac}`,
      `${token}A`,
      ` ${token}`,
      respelled,
    ]) {
      const { metadata } = await expectRefusal(server.org.getInvitation(byToken(forged)), "INVITATION_NOT_FOUND");
      expect(metadata).not.toHaveProperty("invitation_id");
      await expectRefusal(server.org.acceptInvitation({ inviteToken: forged }), "INVITATION_NOT_FOUND");
    }
    const { text } = await server.pool.one(sql.type(z.object({ text: z.string() }))`
      SELECT i::text AS text FROM invitations i WHERE i.invite_id = ${invitation.invitationId}::uuid`);
    expect(text).not.toContain(mac);
  });

  test("a tenant's service finds its own alone", async () => {
    const server = await startService(transport);
    const { invitation, token, tenantId } = await invite(server);
    const own = await server.addService(["org.invitation.*"], tenantId);
    const foreign = await server.addService(["org.invitation.*"], await server.addTenant());
    for (const selector of [byToken(token), byId(invitation.invitationId)]) {
      expect((await own.org.getInvitation(selector)).invitation).toEqual(invitation);
      await expectRefusal(foreign.org.getInvitation(selector), "INVITATION_NOT_FOUND");
    }
    await expectRefusal(foreign.org.acceptInvitation({ inviteToken: token }), "INVITATION_NOT_FOUND");
    const unknown = randomUUID();
    const { metadata } = await expectRefusal(server.org.getInvitation(byId(unknown)), "INVITATION_NOT_FOUND");
    expect(metadata).toHaveProperty("invitation_id", unknown);
    const stranger = await actingFor(server, await addUser(server));
    await expectRefusal(stranger.org.getInvitation(byToken(token)), "ACTOR_TOKEN_INVALID");
  });

  test("a pending or expired one is revoked, once; an unknown one is not found", async () => {
    const server = await startService(transport);
    for (const seconds of [60, 0]) {
      const { invitation, tenantId } = await invite(server);
      const { invitationId } = invitation;
      await expireIn(server, invitation, seconds);
      const expected = seconds > 0 ? InvitationState.PENDING : InvitationState.EXPIRED;
      expect((await server.org.getInvitation(byId(invitationId))).invitation?.state).toBe(expected);
      const revocations = await Promise.all(
        Array.from({ length: 20 }, () => server.org.revokeInvitation({ tenantId, invitationId })),
      );
      for (const revoked of revocations) expect(revoked.invitation?.state).toBe(InvitationState.REVOKED);
      expect(await actionsOf(server, invitationId)).toEqual(["org.invitation.revoke", "org.invitation.create"]);
      const otherTenant = await server.addTenant();
      for (const unknown of [
        { tenantId: otherTenant, invitationId },
        { tenantId, invitationId: randomUUID() },
      ]) {
        await expectRefusal(server.org.revokeInvitation(unknown), "INVITATION_NOT_FOUND");
      }
    }
  });

  test("while a role is offered it is deleted, or offered, and never both", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const race = async (round: number) => {
      const target = await addTarget(server, tenantId);
      const create = () => outcomes([server.org.createInvitation({ tenantId, email: uniqueEmail(), ...target })]);
      const remove = () => outcomes([server.org.deleteRole({ tenantId, roleId: target.roleId })]);
      const first = round % 2 ? remove() : undefined;
      const [made, deleted] = [create(), first ?? remove()];
      expect([(await made).reasons, (await deleted).reasons]).toEqual(
        (await made).answered === 1 ? [[], ["ROLE_IN_USE"]] : [["ROLE_NOT_FOUND"], []],
      );
    };
    for (let batch = 0; batch < 5; batch++) await Promise.all(Array.from({ length: 20 }, (_, n) => race(n)));
  });
});

test("a token outlives a new pepper, and ends with its own", async () => {
  const [old, fresh] = [PEPPERS[0]!, { version: 2, key: Buffer.alloc(32, 9) }];
  const first = await launchService("grpc");
  try {
    const email = uniqueEmail();
    const { invitation, token, tenantId } = await invite(first, { email });
    const repeat = { tenantId, invitationId: invitation.invitationId, email };
    const { databaseUrl } = first;
    const { serviceId, key } = await first.addService(["*"]);
    const rotated = await launchService("grpc", { databaseUrl, peppers: [old, fresh] });
    const { org } = rotated.as(first.rootToken);
    expect((await org.getInvitation(byToken(token))).invitation).toEqual(invitation);
    expect((await org.createInvitation(repeat)).inviteToken).toBe(token);
    // The root's own secret falls with the old pepper: a secret of another service does not.
    const { services } = rotated.as(first.rootToken);
    const { secret } = await services.createServiceSecret({ serviceId });
    const { serviceToken } = await rotated.as(undefined).services.authenticateService({ key, secret });
    await rotated.stop();
    const bare = await launchService("grpc", { databaseUrl, peppers: [fresh] });
    const later = bare.as(serviceToken).org;
    await expectRefusal(later.getInvitation(byToken(token)), "INVITATION_NOT_FOUND");
    await expectRefusal(later.createInvitation(repeat), "INVITATION_ID_TAKEN");
    await bare.stop();
  } finally {
    await first.stop();
  }
});
