import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type QuerySqlToken, sql } from "slonik";
import { describe, expect, test } from "vitest";
import { InvitationState } from "../../src/gen/org/v1/org_pb.ts";
import { selectInvitations, selectOpen } from "../../src/org/invitation-lists.ts";
import { type Invited, expireIn, invite } from "../support/invitations.ts";
import { indexesOf, planOf, sortsOf } from "../support/plans.ts";
import { expectRefusal } from "../support/refusals.ts";
import { type TestService, startService, transports } from "../support/service.ts";

const { PENDING, ACCEPTED, REVOKED, EXPIRED } = InvitationState;

/** All pages of a list: the ids of each. */
const pagesOf = async ({ org }: TestService, tenantId: string, state: InvitationState | undefined, pageSize = 0) => {
  const pages: string[][] = [];
  let pageToken = "";
  do {
    const page = await org.listInvitations({ tenantId, ...(state !== undefined && { state }), pageSize, pageToken });
    pages.push(page.invitations.map(({ invitationId }) => invitationId));
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return pages;
};

/** Puts invitations into the database, with random ids. Their states take turns. */
const plantAll = ({ pool }: TestService, tenantId: string, count: number) =>
  pool.query(sql.unsafe`
    INSERT INTO invitations (invite_id, tenant_id, email_addr, invite_token_hash_text, expiry_utc, accepted_utc,
      revoked_utc)
    SELECT gen_random_uuid(), ${tenantId}::uuid, n || '@example.com', n,
      now() + CASE WHEN n % 4 = 0 THEN -1 ELSE 1 END * interval '1 hour', CASE WHEN n % 4 = 1 THEN now() END,
      CASE WHEN n % 4 = 2 THEN now() END
    FROM generate_series(1, ${count}) AS n`);

/** Expired ones, and behind them one that is pending. */
const plantExpired = ({ pool }: TestService, tenantId: string, count: number) =>
  pool.query(sql.unsafe`
    INSERT INTO invitations (invite_id, tenant_id, email_addr, invite_token_hash_text, expiry_utc)
    SELECT lpad(to_hex(n), 32, '0')::uuid, ${tenantId}::uuid, n || '@example.com', n,
      now() + CASE WHEN n > ${count} THEN 1 ELSE -1 END * interval '1 hour'
    FROM generate_series(1, ${count} + 1) AS n`);

describe.each(transports)("%s", (transport) => {
  test("what was loaded with times that no Timestamp holds is told with the nearest", async () => {
    const server = await startService(transport);
    const { tenantId, invitation } = await invite(server);
    await server.pool.query(sql.unsafe`
      UPDATE invitations SET created_utc = '-infinity', expiry_utc = 'infinity' WHERE tenant_id = ${tenantId}::uuid`);
    const told = {
      ...invitation,
      createTime: timestampFromMs(Date.parse("0001-01-01T00:00:00Z")),
      expireTime: timestampFromMs(Date.parse("9999-12-31T23:59:59.999Z")),
    };
    expect((await server.org.listInvitations({ tenantId, state: PENDING })).invitations).toEqual([told]);
  });

  test("each state lists its own, by id, in pages of any size", async () => {
    const server = await startService(transport);
    const tenantId = await server.addTenant();
    const invited: Invited[] = [];
    for (let n = 0; n < 12; n++) invited.push(await invite(server, { tenantId }));
    await invite(server);
    const idsOf = (rest: number) =>
      invited.filter((_, n) => n % 4 === rest).map(({ invitation }) => invitation.invitationId);
    for (const [n, { invitation, token }] of invited.entries()) {
      if (n % 4 === 1) await server.org.acceptInvitation({ inviteToken: token });
      if (n % 4 === 2) await server.org.revokeInvitation({ tenantId, invitationId: invitation.invitationId });
      if (n % 4 !== 0) await expireIn(server, invitation, -1);
    }
    const states = [
      [PENDING, idsOf(0)],
      [ACCEPTED, idsOf(1)],
      [REVOKED, idsOf(2)],
      [EXPIRED, idsOf(3)],
      [undefined, invited.map(({ invitation }) => invitation.invitationId)],
    ] as const;
    for (const [state, ids] of states) {
      for (const size of [0, 1, 2, 3, 1_000]) {
        const pages = await pagesOf(server, tenantId, state, size);
        expect(pages.flat()).toEqual(ids.toSorted());
        if (size > 0) expect(Math.max(...pages.map(({ length }) => length))).toBeLessThanOrEqual(size);
      }
      const { invitations } = await server.org.listInvitations({ tenantId, ...(state && { state }) });
      for (const invitation of invitations) {
        const selector = { case: "invitationId", value: invitation.invitationId } as const;
        expect((await server.org.getInvitation({ selector })).invitation).toEqual(invitation);
        if (state) expect(invitation.state).toBe(state);
      }
    }
  });

  test("a token is of its list, and an unknown tenant has none", async () => {
    const server = await startService(transport);
    const { tenantId } = await invite(server);
    await invite(server, { tenantId });
    const { nextPageToken: pageToken } = await server.org.listInvitations({ tenantId, pageSize: 1 });
    const others = [{ state: PENDING }, { tenantId: await server.addTenant() }];
    for (const other of others) {
      const call = server.org.listInvitations({ tenantId, pageToken, ...other });
      expect((await expectRefusal(call, "INVALID_REQUEST")).fields).toEqual(["page_token"]);
    }
    expect((await server.org.listInvitations({ tenantId: randomUUID() })).invitations).toEqual([]);
    const state = InvitationState.UNSPECIFIED;
    await expectRefusal(server.org.listInvitations({ tenantId, state }), "INVALID_REQUEST");
  });
});

test("one pending invitation behind thousands of expired ones is found, by short pages", async () => {
  const server = await startService("grpc");
  const tenantId = await server.addTenant();
  await plantExpired(server, tenantId, 4_500);
  const pages = await pagesOf(server, tenantId, PENDING);
  expect(pages.map(({ length }) => length)).toEqual([0, 0, 1]);
  expect((await pagesOf(server, tenantId, EXPIRED, 1_000)).map(({ length }) => length)).toEqual([
    1_000, 1_000, 1_000, 1_000, 500,
  ]);
});

test("each list reads its index in order, and sorts nothing", async () => {
  const server = await startService("grpc");
  const [tenantId, ...others] = [await server.addTenant(), await server.addTenant(), await server.addTenant()];
  for (const tenant of [tenantId, ...others]) await plantAll(server, tenant, 8_000);
  await server.pool.query(sql.unsafe`VACUUM (ANALYZE) invitations`);
  const statements: [string, QuerySqlToken][] = [null, randomUUID()].flatMap((after) => [
    ["idx_invite_tenant_list", selectInvitations(tenantId, null, after, 51)],
    ["idx_invite_tenant_accepted", selectInvitations(tenantId, "accepted", after, 51)],
    ["idx_invite_tenant_revoked", selectInvitations(tenantId, "revoked", after, 51)],
    ["idx_invite_tenant_open", selectOpen(tenantId, false, after, 51)],
    ["idx_invite_tenant_open", selectOpen(tenantId, true, after, 51)],
  ]);
  for (const [index, statement] of statements) {
    const plan = await planOf(server.pool, statement);
    expect({ read: indexesOf(plan), sorts: sortsOf(plan) }).toEqual({ read: [index], sorts: 0 });
  }
});
