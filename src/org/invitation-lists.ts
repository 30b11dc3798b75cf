import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { InvitationState, ListInvitationsRequestSchema, type OrgService } from "../gen/org/v1/org_pb.ts";
import { CANDIDATES, candidateColumns, cutCandidates } from "../rpc/candidates.ts";
import type { Handlers } from "../rpc/methods.ts";
import { cutPage, readPage } from "../rpc/page.ts";
import { invitationMessage, invitationRow } from "./invitations.ts";
import type { OrgParts } from "./parts.ts";

const candidateRow = invitationRow.extend(candidateColumns);

/** Exported for the test that holds its plans, as selectOpen. @param ended how those have ended that are listed; null is all. */
export const selectInvitations = (
  tenantId: string,
  ended: "accepted" | "revoked" | null,
  after: string | null,
  limit: number,
) => sql.type(invitationRow)`
  SELECT i.invite_id, i.tenant_id, i.email_addr, i.phone_e164, i.invited_by_user_id, i.target_role_id,
    i.target_org_node_id, i.invite_token_hash_text, i.expiry_utc, i.accepted_utc, i.revoked_utc, i.created_utc,
    i.expiry_utc <= statement_timestamp() AS expired
  FROM invitations i
  WHERE i.tenant_id = ${tenantId}::uuid
    AND (${ended}::text IS DISTINCT FROM 'accepted' OR i.accepted_utc IS NOT NULL)
    AND (${ended}::text IS DISTINCT FROM 'revoked' OR i.revoked_utc IS NOT NULL)
    AND (${after}::uuid IS NULL OR i.invite_id > ${after}::uuid)
  ORDER BY i.invite_id
  LIMIT ${limit}`;

/** Those that nobody ended, expired or not: only the clock tells these apart. */
export const selectOpen = (tenantId: string, expired: boolean, after: string | null, limit: number) => sql.type(
  candidateRow,
)`
  SELECT w.invite_id, w.tenant_id, w.email_addr, w.phone_e164, w.invited_by_user_id, w.target_role_id,
    w.target_org_node_id, w.invite_token_hash_text, w.expiry_utc, w.accepted_utc, w.revoked_utc, w.created_utc,
    w.expired, w.matches, w.position
  FROM (
    SELECT i.invite_id, i.tenant_id, i.email_addr, i.phone_e164, i.invited_by_user_id, i.target_role_id,
      i.target_org_node_id, i.invite_token_hash_text, i.expiry_utc, i.accepted_utc, i.revoked_utc, i.created_utc,
      i.expiry_utc <= statement_timestamp() AS expired,
      (i.expiry_utc <= statement_timestamp()) = ${expired}::boolean AS matches,
      row_number() OVER (ORDER BY i.invite_id) AS position
    FROM invitations i
    WHERE i.tenant_id = ${tenantId}::uuid AND i.accepted_utc IS NULL AND i.revoked_utc IS NULL
      AND (${after}::uuid IS NULL OR i.invite_id > ${after}::uuid)
    ORDER BY i.invite_id
    LIMIT ${CANDIDATES}
  ) w
  WHERE w.matches OR w.position = ${CANDIDATES}
  ORDER BY w.invite_id
  LIMIT ${limit}`;

const endedCode = (state: InvitationState | undefined) => {
  if (state === InvitationState.ACCEPTED) return "accepted";
  return state === InvitationState.REVOKED ? "revoked" : null;
};

const isOpen = (state: InvitationState | undefined) =>
  state === InvitationState.PENDING || state === InvitationState.EXPIRED;

export const invitationListHandlers = ({ db }: OrgParts) =>
  ({
    async listInvitations(request, call) {
      const page = readPage(ListInvitationsRequestSchema, request, z.guid());
      const { tenantId, state } = request;
      const [after, limit] = [page.after ?? null, page.size + 1];
      const { rows, nextPageToken } = await read(db, call, async (connection) => {
        const keyOf = (row: { readonly invite_id: string }) => row.invite_id;
        if (!isOpen(state)) {
          const list = selectInvitations(tenantId, endedCode(state), after, limit);
          return cutPage(page, await connection.any(list), keyOf);
        }
        const open = selectOpen(tenantId, state === InvitationState.EXPIRED, after, limit);
        return cutCandidates(page, await connection.any(open), keyOf);
      });
      return { invitations: rows.map(invitationMessage), nextPageToken };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
