import { describe, expect, test } from "vitest";
import { UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { InvitationState } from "../../src/gen/org/v1/org_pb.ts";
import { actingFor, addTarget, expireIn, invite } from "../support/invitations.ts";
import { PASSWORD, startCheapService, storedHash } from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { transports } from "../support/service.ts";
import {
  actionsOf,
  addUser,
  countUsers,
  eventsOf,
  uniqueEmail,
  uniquePhone,
  verifyContacts,
} from "../support/users.ts";

describe.each(transports)("%s", (transport) => {
  test.each(["email", "phone"] as const)("a newcomer becomes a user of the invited %s, unverified", async (kind) => {
    const server = await startCheapService(transport);
    const contact = kind === "email" ? uniqueEmail() : uniquePhone();
    const { tenantId, invitation, token } = await invite(server, { [kind]: contact });
    const displayName = "Ann";
    const answer = await server.org.acceptInvitation({ inviteToken: token, displayName, password: PASSWORD });
    const { userId } = answer;
    expect(answer.assignment).toBeUndefined();
    expect(answer.invitation).toMatchObject({ [kind]: contact, state: InvitationState.ACCEPTED });
    expect(answer.invitation?.acceptTime).toBeDefined();
    const selector = { selector: { case: "inviteToken", value: token } } as const;
    expect((await server.org.getInvitation(selector)).invitation).toEqual(answer.invitation);
    const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value: userId } });
    expect(user).toMatchObject({ tenantId, [kind]: contact, displayName, state: UserState.ACTIVE });
    expect(user).toMatchObject({ emailVerified: false, phoneVerified: false });
    const login = { tenantId, identifier: { case: kind, value: contact }, password: PASSWORD } as const;
    expect((await server.auth.loginWithPassword(login)).user?.userId).toBe(userId);
    const [created] = (await eventsOf(server, userId)).filter(({ entityKind }) => entityKind === "user");
    const fields = [kind, "display_name", "password"];
    expect(created).toMatchObject({ action: "auth.user.create", tenantId, payload: { fields, method: "invitation" } });
    const [accepted] = await eventsOf(server, invitation.invitationId);
    expect(accepted).toMatchObject({ action: "org.invitation.accept", tenantId, payload: { user_id: userId } });
    expect(JSON.stringify([created?.payload, accepted?.payload])).not.toContain(contact);
  });

  test("a newcomer needs neither a name nor a password", async () => {
    const server = await startCheapService(transport);
    const { token, tenantId } = await invite(server);
    const { userId } = await server.org.acceptInvitation({ inviteToken: token });
    const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value: userId } });
    expect(user?.displayName).toBeUndefined();
    expect(await storedHash(server, userId)).toBeUndefined();
  });

  test("the role is assigned from now on, and decides", async () => {
    const server = await startCheapService(transport);
    const tenantId = await server.addTenant();
    const target = await addTarget(server, tenantId);
    const { token, invitation } = await invite(server, { tenantId, ...target });
    await server.org.deactivateNode({ tenantId, nodeId: target.nodeId });
    const { userId, assignment } = await server.org.acceptInvitation({ inviteToken: token });
    expect(assignment).toMatchObject({ tenantId, userId, ...target });
    expect(assignment?.endTime).toBeUndefined();
    const { assignmentId } = assignment!;
    expect((await server.org.getAssignment({ tenantId, assignmentId })).assignment).toEqual(assignment);
    const { assignments } = await server.org.listAssignments({ tenantId, userId });
    expect(assignments).toEqual([assignment]);
    expect(await actionsOf(server, assignmentId)).toEqual(["org.assignment.create"]);
    const [event] = await eventsOf(server, invitation.invitationId);
    expect(event?.payload).toMatchObject({ user_id: userId, assignment_id: assignmentId });
  });

  test("the user of the contact accepts by its own token, and nothing of it is verified or made", async () => {
    const server = await startCheapService(transport);
    const user = await addUser(server, { displayName: "Ann" });
    const { tenantId, userId, email = "" } = user;
    const target = await addTarget(server, tenantId);
    const { token, invitation } = await invite(server, { tenantId, email, ...target });
    const before = await countUsers(server, tenantId);
    const { org } = await actingFor(server, user);
    const answer = await org.acceptInvitation({ inviteToken: token, displayName: "Eve" });
    expect(answer).toMatchObject({ userId, assignment: { userId, ...target } });
    const found = await server.auth.getUser({ tenantId, key: { case: "userId", value: userId } });
    expect(found.user).toEqual(user);
    expect(await countUsers(server, tenantId)).toBe(before);
    expect(await actionsOf(server, userId)).toEqual(["auth.user.create"]);
    expect((await eventsOf(server, invitation.invitationId))[0]?.actorUserId).toBe(userId);
  });

  test("where a user has the contact, nobody else accepts, and no password is taken", async () => {
    const server = await startCheapService(transport);
    const user = await addUser(server);
    const { tenantId, email = "" } = user;
    await verifyContacts(server, user, { email: true });
    const { token } = await invite(server, { tenantId, email });
    const other = await actingFor(server, await addUser(server, { tenantId }));
    const inviteToken = { inviteToken: token };
    for (const { org } of [server, other]) {
      await expectRefusal(org.acceptInvitation(inviteToken), "LOGIN_REQUIRED");
      await expectRefusal(org.acceptInvitation({ ...inviteToken, password: PASSWORD }), "LOGIN_REQUIRED");
    }
    const stranger = await actingFor(server, await addUser(server));
    await expectRefusal(stranger.org.acceptInvitation(inviteToken), "ACTOR_TOKEN_INVALID");
    const { org } = await actingFor(server, user);
    const refused = await expectRefusal(
      org.acceptInvitation({ ...inviteToken, password: PASSWORD }),
      "INVALID_REQUEST",
    );
    expect(refused.fields).toEqual(["password"]);
    await server.auth.deactivateUser({ tenantId, userId: user.userId });
    await expectRefusal(server.org.acceptInvitation(inviteToken), "LOGIN_REQUIRED");
    await expectRefusal(org.acceptInvitation(inviteToken), "ACTOR_TOKEN_INVALID");
    await server.auth.activateUser({ tenantId, userId: user.userId });
    await (await actingFor(server, user)).org.acceptInvitation(inviteToken);
  });

  test("an actor who is not the invited one neither helps nor hinders a newcomer, but must be of the tenant", async () => {
    const server = await startCheapService(transport);
    const actor = await addUser(server);
    const { token, tenantId, invitation } = await invite(server, { tenantId: actor.tenantId });
    const stranger = await actingFor(server, await addUser(server));
    await expectRefusal(stranger.org.acceptInvitation({ inviteToken: token }), "ACTOR_TOKEN_INVALID");
    const { org } = await actingFor(server, actor);
    const { userId } = await org.acceptInvitation({ inviteToken: token });
    expect(userId).not.toBe(actor.userId);
    const { user } = await server.auth.getUser({ tenantId, key: { case: "userId", value: userId } });
    expect(user?.email).toBe(invitation.email);
    expect((await eventsOf(server, invitation.invitationId))[0]?.actorUserId).toBe(actor.userId);
  });

  test("a weak password leaves the invitation open", async () => {
    const server = await startCheapService(transport);
    const { token, invitation } = await invite(server);
    for (const password of ["short", "1234567890", invitation.email!, "Ann-Margret X"]) {
      const call = server.org.acceptInvitation({ inviteToken: token, displayName: "Ann-Margret X", password });
      expect((await expectRefusal(call, "PASSWORD_TOO_WEAK")).fields).toEqual(["password"]);
    }
    await server.org.acceptInvitation({ inviteToken: token, password: PASSWORD });
  });

  test("once it has ended it is accepted no more, not even by who accepted it", async () => {
    const server = await startCheapService(transport);
    const user = await addUser(server);
    const { tenantId, email = "" } = user;
    const { org } = await actingFor(server, user);
    const accepted = await invite(server, { tenantId, email });
    await org.acceptInvitation({ inviteToken: accepted.token });
    const revoked = await invite(server, { tenantId, email });
    await server.org.revokeInvitation({ tenantId, invitationId: revoked.invitation.invitationId });
    for (const { token, invitation } of [accepted, revoked]) {
      await expireIn(server, invitation, -1);
      const { metadata } = await expectRefusal(org.acceptInvitation({ inviteToken: token }), "INVITATION_ENDED");
      expect(metadata).toMatchObject({ invitation_id: invitation.invitationId });
    }
    const { invitationId } = accepted.invitation;
    await expectRefusal(server.org.revokeInvitation({ tenantId, invitationId }), "INVITATION_ENDED");
  });

  test("it expires when its time is over, not before", async () => {
    const server = await startCheapService(transport);
    const { token, invitation, tenantId } = await invite(server);
    await expireIn(server, invitation, 0);
    const before = await countUsers(server, tenantId);
    await expectRefusal(server.org.acceptInvitation({ inviteToken: token }), "INVITATION_EXPIRED");
    expect(await countUsers(server, tenantId)).toBe(before);
    await expireIn(server, invitation, 30);
    await server.org.acceptInvitation({ inviteToken: token });
  });

  test("a suspended tenant's is not accepted until the tenant is active again", async () => {
    const server = await startCheapService(transport);
    const { token, tenantId } = await invite(server);
    await server.org.suspendTenant({ tenantId });
    await expectRefusal(server.org.acceptInvitation({ inviteToken: token }), "TENANT_SUSPENDED");
    await server.org.activateTenant({ tenantId });
    await server.org.acceptInvitation({ inviteToken: token });
  });

  test("an expired one keeps no role, and tells so once the role is gone", async () => {
    const server = await startCheapService(transport);
    const tenantId = await server.addTenant();
    const target = await addTarget(server, tenantId);
    const { token, invitation } = await invite(server, { tenantId, ...target });
    await expectRefusal(server.org.deleteRole({ tenantId, roleId: target.roleId }), "ROLE_IN_USE");
    await expireIn(server, invitation, 0);
    await server.org.deleteRole({ tenantId, roleId: target.roleId });
    await expectRefusal(server.org.acceptInvitation({ inviteToken: token }), "INVITATION_EXPIRED");
    await expireIn(server, invitation, 60);
    const before = await countUsers(server, tenantId);
    await expectRefusal(server.org.acceptInvitation({ inviteToken: token }), "ROLE_NOT_FOUND");
    expect(await countUsers(server, tenantId)).toBe(before);
  });

  test("erasing the user of the contact ends what it was invited to", async () => {
    const server = await startCheapService(transport);
    const user = await addUser(server);
    const { tenantId, userId, email = "" } = user;
    const { token, invitation } = await invite(server, { tenantId, email });
    await server.auth.eraseUser({ tenantId, userId });
    await expectRefusal(server.org.acceptInvitation({ inviteToken: token }), "INVITATION_ENDED");
    const repeat = { tenantId, email, invitationId: invitation.invitationId };
    await expectRefusal(server.org.createInvitation(repeat), "INVITATION_ID_TAKEN");
  });
});
