import { sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { OtpChannel, OtpPurpose } from "../../src/gen/auth/v1/auth_pb.ts";
import { AccessScope, InvitationState } from "../../src/gen/org/v1/org_pb.ts";
import { despite, heldUp } from "../support/held-up.ts";
import { actingFor, addTarget, expireIn, invite } from "../support/invitations.ts";
import { PASSWORD, startCheapService } from "../support/passwords.ts";
import { expectRefusal } from "../support/refusals.ts";
import { uniqueCapability } from "../support/roles.ts";
import type { TestService } from "../support/service.ts";
import { lockUser } from "../support/user-rows.ts";
import { actionsOf, addUser, uniqueEmail } from "../support/users.ts";

const start = () => startCheapService("grpc");

interface Person {
  readonly tenantId: string;
  readonly userId: string;
  readonly email: string;
}

const addPerson = async (server: TestService): Promise<Person> => {
  const tenantId = await server.addTenant();
  const email = uniqueEmail();
  const { userId } = await addUser(server, { tenantId, email, password: PASSWORD });
  return { tenantId, userId, email };
};

const shareUser = ({ userId }: Person) => sql.unsafe`SELECT FROM users WHERE user_id = ${userId}::uuid FOR SHARE`;

const logIn = ({ auth }: TestService, { tenantId, email }: Person) =>
  auth.loginWithPassword({ tenantId, identifier: { case: "email", value: email }, password: PASSWORD });

const askCode = ({ auth }: TestService, { tenantId, email }: Person) =>
  auth.requestOtp({ tenantId, destination: email, channel: OtpChannel.EMAIL, purpose: OtpPurpose.LOGIN });

const accept = async (server: TestService, person: Person) => {
  const { token } = await invite(server, { tenantId: person.tenantId, email: person.email });
  const { org } = await actingFor(server, person);
  return () => org.acceptInvitation({ inviteToken: token });
};

describe("what waits while its tenant is suspended is refused", () => {
  const calls: Readonly<Record<string, (server: TestService, person: Person) => Promise<() => Promise<unknown>>>> = {
    LoginWithPassword: (server: TestService, person: Person) => Promise.resolve(() => logIn(server, person)),
    RequestOtp: (server: TestService, person: Person) => Promise.resolve(() => askCode(server, person)),
    AcceptInvitation: accept,
  };
  test.each(Object.entries(calls))("%s", async (_, prepare) => {
    const server = await start();
    const person = await addPerson(server);
    const { tenantId } = person;
    const call = await prepare(server, person);
    const before = (await server.auth.listSessions(person)).sessions.length;
    const held = heldUp(server, lockUser(person), call, () => server.org.suspendTenant({ tenantId }));
    await expectRefusal(held, "TENANT_SUSPENDED");
    await server.org.activateTenant({ tenantId });
    expect((await server.auth.listSessions(person)).sessions).toHaveLength(before);
  });
});

test("an invitation that expires while its acceptance waits for the contact is not accepted, and makes no user", async () => {
  const server = await start();
  const email = uniqueEmail();
  const { tenantId, invitation, token } = await invite(server, { email });
  const taken = sql.unsafe`
    INSERT INTO users (user_id, tenant_id, email_addr, user_state_code)
    VALUES (gen_random_uuid(), ${tenantId}::uuid, ${email}, 'active')`;
  await expireIn(server, invitation, 0.5);
  const isExpired = sql.type(z.object({ expired: z.boolean() }))`
    SELECT expiry_utc < clock_timestamp() AS expired FROM invitations
    WHERE invite_id = ${invitation.invitationId}::uuid`;
  const accepting = heldUp(
    server,
    taken,
    () => server.org.acceptInvitation({ inviteToken: token }),
    async (tx) => {
      await expect.poll(() => tx.oneFirst(isExpired)).toBe(true);
      await tx.query(sql.unsafe`DELETE FROM users WHERE tenant_id = ${tenantId}::uuid`);
    },
  );
  await expectRefusal(accepting, "INVITATION_EXPIRED");
  expect((await server.auth.listUsers({ tenantId })).users).toEqual([]);
});

test("an invitation whose tenant is suspended while its acceptance waits for the contact makes no user", async () => {
  const server = await start();
  const email = uniqueEmail();
  const { tenantId, token } = await invite(server, { email });
  const taken = sql.unsafe`
    INSERT INTO users (user_id, tenant_id, email_addr, user_state_code)
    VALUES (gen_random_uuid(), ${tenantId}::uuid, ${email}, 'active')`;
  const accepting = heldUp(
    server,
    taken,
    () => server.org.acceptInvitation({ inviteToken: token }),
    async (tx) => {
      await server.org.suspendTenant({ tenantId });
      await tx.query(sql.unsafe`DELETE FROM users WHERE tenant_id = ${tenantId}::uuid`);
    },
  );
  await expectRefusal(accepting, "TENANT_SUSPENDED");
  expect((await server.auth.listUsers({ tenantId })).users).toEqual([]);
});

test("an acceptance that comes upon the user whom another one has just made is told that the invitation has ended", async () => {
  const server = await start();
  const email = uniqueEmail();
  const { tenantId, invitation, token } = await invite(server, { email });
  const accepting = heldUp(
    server,
    // It has read the invitation by then, and looks for whose the contact is.
    sql.unsafe`LOCK TABLE users`,
    () => server.org.acceptInvitation({ inviteToken: token }),
    async (tx) => {
      await tx.query(sql.unsafe`
        INSERT INTO users (user_id, tenant_id, email_addr, user_state_code)
        VALUES (gen_random_uuid(), ${tenantId}::uuid, ${email}, 'active')`);
      await tx.query(sql.unsafe`
        UPDATE invitations SET accepted_utc = now() WHERE invite_id = ${invitation.invitationId}::uuid`);
    },
  );
  await expectRefusal(accepting, "INVITATION_ENDED");
});

test("a revocation that waits while its invitation is accepted finds it ended", async () => {
  const server = await start();
  const { tenantId, invitation } = await invite(server);
  const { invitationId } = invitation;
  const revoking = heldUp(
    server,
    sql.unsafe`SELECT FROM invitations WHERE invite_id = ${invitationId}::uuid FOR UPDATE`,
    () => server.org.revokeInvitation({ tenantId, invitationId }),
    (tx) => tx.query(sql.unsafe`UPDATE invitations SET accepted_utc = now() WHERE invite_id = ${invitationId}::uuid`),
  );
  await expectRefusal(revoking, "INVITATION_ENDED");
  expect(await actionsOf(server, invitationId)).toEqual(["org.invitation.create"]);
});

test("an invitation that is made while its contact's user is erased ends with its event", async () => {
  const server = await start();
  const person = await addPerson(server);
  const { tenantId, email } = person;
  const { invitation: first } = await invite(server, { tenantId, email });
  await server.org.revokeInvitation({ tenantId, invitationId: first.invitationId });
  const { roleId, nodeId } = await addTarget(server, tenantId);
  const lock = sql.unsafe`SELECT FROM invitations WHERE invite_id = ${first.invitationId}::uuid FOR UPDATE`;
  let invitationId = "";
  await heldUp(
    server,
    lock,
    () => server.auth.eraseUser(person),
    async () => {
      ({ invitationId } = (await invite(server, { tenantId, email, roleId, nodeId })).invitation);
    },
  );
  const selector = { case: "invitationId", value: invitationId } as const;
  expect((await server.org.getInvitation({ selector })).invitation?.state).toBe(InvitationState.REVOKED);
  expect(await actionsOf(server, invitationId)).toEqual(["org.invitation.revoke", "org.invitation.create"]);
  await server.org.deleteRole({ tenantId, roleId });
});

describe("however many share a row, who changes it gets his turn", () => {
  test("an assignment and a grant are made, and moved, while their user and role are being changed", async () => {
    const server = await start();
    const person = await addPerson(server);
    const { tenantId, userId } = person;
    const { roleId, nodeId } = await addTarget(server, tenantId);
    const lockRole = sql.unsafe`SELECT FROM roles WHERE role_id = ${roleId}::uuid FOR NO KEY UPDATE`;
    const { assignment } = await despite(server, lockUser(person), () =>
      despite(server, lockRole, () => server.org.assignRole({ tenantId, userId, roleId, nodeId })),
    );
    const { assignmentId } = assignment!;
    await despite(server, lockUser(person), () =>
      despite(server, lockRole, () => server.org.endAssignment({ tenantId, assignmentId })),
    );
    const scope = AccessScope.READ;
    const { grant } = await despite(server, lockUser(person), () =>
      server.org.grantVisibility({ tenantId, userId, nodeId, scope }),
    );
    await despite(server, lockUser(person), () => server.org.revokeVisibility({ tenantId, grantId: grant!.grantId }));
  });

  test("a role's capabilities change while it is being assigned", async () => {
    const server = await start();
    const tenantId = await server.addTenant();
    const { roleId } = await addTarget(server, tenantId);
    const key = uniqueCapability();
    await server.org.createCapability({ key });
    const assigned = sql.unsafe`SELECT FROM roles WHERE role_id = ${roleId}::uuid FOR KEY SHARE`;
    const { role } = await despite(server, assigned, () =>
      server.org.addRoleCapabilities({ tenantId, roleId, capabilityKeys: [key] }),
    );
    expect(role?.capabilityKeys).toContain(key);
  });

  test("who signs in does not share the user's row, and waits for his turn", async () => {
    const server = await start();
    const person = await addPerson(server);
    const { tokens } = await heldUp(server, shareUser(person), () => logIn(server, person));
    expect(tokens?.accessToken).not.toBe("");
  });
});
