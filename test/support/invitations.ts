import type { MessageInitShape } from "@bufbuild/protobuf";
import { sql } from "slonik";
import type { CreateInvitationRequestSchema, Invitation } from "../../src/gen/org/v1/org_pb.ts";
import { addRole, plantPlace } from "./roles.ts";
import type { Clients, TestService } from "./service.ts";
import { signInBy } from "./sign-in.ts";
import { uniqueEmail } from "./users.ts";

export type NewInvitation = MessageInitShape<typeof CreateInvitationRequestSchema>;

export interface Invited {
  readonly tenantId: string;
  readonly invitation: Invitation;
  readonly token: string;
}

/** Invites by the API: to a tenant of its own, and an e-mail that nobody has, where none is named. */
export const invite = async (server: TestService, request: NewInvitation = {}): Promise<Invited> => {
  const tenantId = request.tenantId ?? (await server.addTenant());
  const contact = request.email === undefined && request.phone === undefined ? { email: uniqueEmail() } : {};
  const { invitation, inviteToken } = await server.org.createInvitation({ ...contact, ...request, tenantId });
  return { tenantId, invitation: invitation!, token: inviteToken };
};

/** A role, and a node to have it at. */
export const addTarget = async (server: TestService, tenantId: string) => {
  const { roleId } = await addRole(server, { tenantId });
  const { nodeId } = await plantPlace(server, tenantId);
  return { roleId, nodeId };
};

/** Moves the end of an invitation to seconds from now. */
export const expireIn = ({ pool }: TestService, { invitationId }: Invitation, seconds: number) =>
  pool.query(sql.unsafe`
    UPDATE invitations SET expiry_utc = clock_timestamp() + ${seconds}::float8 * interval '1 second'
    WHERE invite_id = ${invitationId}::uuid`);

/** Signs users in, and answers with root's clients acting for them. */
export const actingBy = async (server: TestService) => {
  const signIn = await signInBy(server);
  return async ({ tenantId, userId }: { readonly tenantId: string; readonly userId: string }): Promise<Clients> => {
    const { accessToken } = await signIn({ tenantId, userId });
    return server.as(server.rootToken, { "x-actor-token": accessToken });
  };
};

/** Root's clients, acting for a user. */
export const actingFor = async (
  server: TestService,
  user: { readonly tenantId: string; readonly userId: string },
): Promise<Clients> => (await actingBy(server))(user);
