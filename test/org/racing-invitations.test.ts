import { sql } from "slonik";
import { expect, test } from "vitest";
import { z } from "zod";
import { overBoth, raceFor } from "../support/both-transports.ts";
import { type Invited, actingBy, actingFor, addTarget, invite } from "../support/invitations.ts";
import { lockWaiters, untilSomebodyWaits } from "../support/lock-waiters.ts";
import { PASSWORD, startCheapService } from "../support/passwords.ts";
import { addRole } from "../support/roles.ts";
import type { Clients, TestService } from "../support/service.ts";
import { signInBy } from "../support/sign-in.ts";
import { actionsOf, addUser, outcomes, uniqueEmail } from "../support/users.ts";

const standRow = z.object({
  users: z.bigint(),
  verified: z.bigint(),
  live_assignments: z.bigint(),
  assignments: z.bigint(),
  accepted: z.boolean(),
  contact: z.string().nullable(),
});

/** What stands of an invitation, and of the users that have its e-mail. */
const standing = ({ pool }: TestService, { tenantId, invitation }: Invited) =>
  pool.one(sql.type(standRow)`
    WITH own AS (
      SELECT u.user_id, u.email_verified_utc FROM users u
      WHERE u.tenant_id = ${tenantId}::uuid AND u.email_addr = ${invitation.email ?? null}::text
    ), made AS (
      SELECT a.end_utc FROM org_assignments a
      WHERE a.tenant_id = ${tenantId}::uuid AND a.role_id = ${invitation.roleId ?? null}::uuid
    )
    SELECT (SELECT count(*) FROM own) AS users, (SELECT count(email_verified_utc) FROM own) AS verified,
      (SELECT count(*) FROM made WHERE end_utc IS NULL) AS live_assignments, (SELECT count(*) FROM made) AS assignments,
      i.accepted_utc IS NOT NULL AS accepted, i.email_addr AS contact
    FROM invitations i WHERE i.tenant_id = ${tenantId}::uuid AND i.invite_id = ${invitation.invitationId}::uuid`);

const eventsOfRole = ({ pool }: TestService, { invitation }: Invited) =>
  pool.oneFirst(sql.type(z.object({ count: z.bigint() }))`
    SELECT count(*) AS count FROM audit_events
    WHERE action_key = 'org.assignment.create' AND payload_json ->> 'role_id' = ${invitation.roleId ?? null}::text`);

const acceptBy = ({ org }: Pick<Clients, "org">, { token }: Invited, password?: string) =>
  org.acceptInvitation({ inviteToken: token, ...(password !== undefined && { password }) });

const start = async () => overBoth(await startCheapService("grpc"));

const ROUNDS = 40;

/** Rounds of a race, 20 at once. */
const inRounds = (rounds: number, race: (round: number) => Promise<void>) =>
  raceFor([...Array(rounds).keys()], 20, race);

/** Calls made at once, whose first is another one each round. */
const atOnce = async <Call extends readonly (() => Promise<unknown>)[]>(round: number, ...calls: Call) => {
  const begun = new Map<number, ReturnType<typeof outcomes>>();
  for (let n = 0; n < calls.length; n++) {
    const at = (n + round) % calls.length;
    begun.set(at, outcomes([calls[at]!()]));
  }
  const ended = await Promise.all(calls.map(async (_, at) => begun.get(at)!));
  return ended.map(({ answered, reasons }) => (answered === 1 ? "OK" : reasons[0]));
};

test.each([
  ["a newcomer", "without a role", false, false],
  ["a newcomer", "with a role", false, true],
  ["the user of the contact", "without a role", true, false],
  ["the user of the contact", "with a role", true, true],
])("of 50 accepts at once by %s, %s, exactly one wins", async (_, __, isUser, hasRole) => {
  const server = await start();
  const tenantId = await server.addTenant();
  const target = hasRole ? await addTarget(server, tenantId) : {};
  const email = uniqueEmail();
  const user = isUser ? await addUser(server, { tenantId, email }) : undefined;
  const invited = await invite(server, { tenantId, email, ...target });
  const clients = user ? await actingFor(server, user) : server;
  const accepts = Array.from({ length: 50 }, () => acceptBy(clients, invited, isUser ? undefined : PASSWORD));
  const { answered, reasons } = await outcomes(accepts);
  expect({ answered, reasons: new Set(reasons) }).toEqual({ answered: 1, reasons: new Set(["INVITATION_ENDED"]) });
  const made = hasRole ? 1n : 0n;
  expect(await standing(server, invited)).toMatchObject({ users: 1n, verified: 0n, live_assignments: made });
  expect(await standing(server, invited)).toMatchObject({ assignments: made, accepted: true, contact: email });
  expect(await eventsOfRole(server, invited)).toBe(made);
  const actions = await actionsOf(server, invited.invitation.invitationId);
  expect(actions).toEqual(["org.invitation.accept", "org.invitation.create"]);
});

test("an invitation is accepted, or revoked, and never both", async () => {
  const server = await start();
  const tenantId = await server.addTenant();
  await inRounds(ROUNDS, async (round) => {
    const invited = await invite(server, { tenantId });
    const { invitationId } = invited.invitation;
    const ends = await atOnce(
      round,
      () => acceptBy(server, invited),
      () => server.org.revokeInvitation({ tenantId, invitationId }),
    );
    expect([
      ["OK", "INVITATION_ENDED"],
      ["INVITATION_ENDED", "OK"],
    ]).toContainEqual(ends);
    const { users, accepted } = await standing(server, invited);
    expect({ users, accepted }).toEqual(
      ends[0] === "OK" ? { users: 1n, accepted: true } : { users: 0n, accepted: false },
    );
  });
});

test("a contact that is taken meanwhile is one user's: the other is told", async () => {
  const server = await start();
  const tenantId = await server.addTenant();
  await inRounds(ROUNDS, async (round) => {
    const invited = await invite(server, { tenantId });
    const { email = "" } = invited.invitation;
    const ends = await atOnce(
      round,
      () => acceptBy(server, invited),
      () => server.auth.createUser({ tenantId, email }),
    );
    expect([
      ["OK", "EMAIL_TAKEN"],
      ["LOGIN_REQUIRED", "OK"],
    ]).toContainEqual(ends);
    const accepted = ends[0] === "OK";
    expect(await standing(server, invited)).toMatchObject({ users: 1n, verified: 0n, accepted });
  });
});

test("of two invitations of one contact, accepted at once, one makes the user, the other wants its login", async () => {
  const server = await start();
  const tenantId = await server.addTenant();
  await inRounds(ROUNDS, async () => {
    const first = await invite(server, { tenantId });
    const second = await invite(server, { tenantId, email: first.invitation.email! });
    const calls = [first, second].map((invited) => acceptBy(server, invited));
    expect(await outcomes(calls)).toEqual({ answered: 1, reasons: ["LOGIN_REQUIRED"] });
    expect((await standing(server, first)).users).toBe(1n);
  });
});

test("whoever is erased while it accepts keeps nothing", async () => {
  const server = await start();
  const tenantId = await server.addTenant();
  const { nodeId } = await addTarget(server, tenantId);
  const acting = await actingBy(server);
  await inRounds(ROUNDS, async (round) => {
    const { roleId } = await addRole(server, { tenantId });
    const user = await addUser(server, { tenantId });
    const invited = await invite(server, { tenantId, email: user.email!, roleId, nodeId });
    const clients = await acting(user);
    const [accepted, erased] = await atOnce(
      round,
      () => acceptBy(clients, invited),
      () => server.auth.eraseUser({ tenantId, userId: user.userId }),
    );
    expect(erased).toBe("OK");
    expect(["OK", "INVITATION_ENDED", "LOGIN_REQUIRED", "ACTOR_TOKEN_INVALID"]).toContain(accepted);
    expect(await standing(server, invited)).toEqual({
      users: 0n,
      verified: 0n,
      live_assignments: 0n,
      assignments: accepted === "OK" ? 1n : 0n,
      accepted: accepted === "OK",
      contact: null,
    });
  });
});

test("a role that is offered is not deleted while the offer is accepted, nor after", async () => {
  const server = await start();
  const tenantId = await server.addTenant();
  const { nodeId } = await addTarget(server, tenantId);
  await inRounds(ROUNDS, async (round) => {
    const { roleId } = await addRole(server, { tenantId });
    const invited = await invite(server, { tenantId, roleId, nodeId });
    const { invitationId } = invited.invitation;
    const [accepted, deleted, revoked] = await atOnce(
      round,
      () => acceptBy(server, invited),
      () => server.org.deleteRole({ tenantId, roleId }),
      () => server.org.revokeInvitation({ tenantId, invitationId }),
    );
    expect(["OK", "INVITATION_ENDED"]).toContain(accepted);
    expect(revoked).toBe(accepted === "OK" ? "INVITATION_ENDED" : "OK");
    if (accepted === "OK") expect(deleted).toBe("ROLE_IN_USE");
    const made = accepted === "OK" ? 1n : 0n;
    expect(await standing(server, invited)).toMatchObject({ users: made, live_assignments: made });
  });
});

test("a contact that moves between users meanwhile is accepted by its user alone", async () => {
  const server = await start();
  const tenantId = await server.addTenant();
  const acting = await actingBy(server);
  await inRounds(ROUNDS, async (round) => {
    const user = await addUser(server, { tenantId });
    const { userId } = user;
    const invited = await invite(server, { tenantId });
    const { email = "" } = invited.invitation;
    const clients = await acting(user);
    const ends = await atOnce(
      round,
      () => acceptBy(clients, invited),
      () => server.auth.updateUser({ tenantId, userId, email, updateMask: { paths: ["email"] } }),
    );
    expect(ends[0]).toBe("OK");
    expect(["OK", "EMAIL_TAKEN"]).toContain(ends[1]);
    expect(await standing(server, invited)).toMatchObject({ users: 1n, accepted: true });
  });
});

test("the user of the contact is deactivated only once its acceptance has ended", async () => {
  const server = await start();
  const tenantId = await server.addTenant();
  const { userId, email = "" } = await addUser(server, { tenantId });
  const { accessToken } = await (await signInBy(server))({ tenantId, userId });
  const invited = await invite(server, { tenantId, email });
  const { serviceId, token } = await server.addService(["org.invitation.accept"]);
  const clients = server.as(token, { "x-actor-token": accessToken });
  const { accepting, deactivating } = await server.pool.transaction(async (tx) => {
    // What the acceptance writes last, its event, names this row.
    await tx.query(sql.unsafe`SELECT FROM services WHERE svc_id = ${serviceId}::uuid FOR UPDATE`);
    const accepted = acceptBy(clients, invited);
    await untilSomebodyWaits(tx);
    let isDeactivated = false;
    const deactivated = server.auth.deactivateUser({ tenantId, userId }).finally(() => (isDeactivated = true));
    await expect.poll(async () => isDeactivated || (await lockWaiters(tx)) === 2).toBe(true);
    expect(isDeactivated).toBe(false);
    return { accepting: accepted, deactivating: deactivated };
  });
  expect((await accepting).userId).toBe(userId);
  await deactivating;
});
