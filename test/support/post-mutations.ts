import { randomUUID } from "node:crypto";
import { actingFor, addTarget, invite } from "./invitations.ts";
import { type Stage, mutationOf } from "./mutations.ts";
import { PASSWORD } from "./passwords.ts";
import { addUser, uniqueEmail } from "./users.ts";
import {
  type EndedWindow,
  type Kind,
  type Post,
  type Windowed,
  assignments,
  at,
  databaseNow,
  grants,
  plantPost,
  recordedTimes,
} from "./windows.ts";

const row = mutationOf<Stage>();

const namesOf = {
  assignment: ({ userId, nodeId, roleId }: Post) => ({ user_id: userId, node_id: nodeId, role_id: roleId }),
  visibility_grant: ({ userId, nodeId }: Post) => ({ user_id: userId, node_id: nodeId, scope: "read" }),
};

interface Rpcs {
  readonly create: string;
  readonly end: string;
}

/** What assignments and grants have in common. */
const windowMutations = (kind: Kind, rpcs: Rpcs) => {
  const event = (action: string, id: string, post: Post, answer: Windowed) => {
    const payload = { ...namesOf[kind.entityKind](post), ...recordedTimes(answer) };
    return { action, entityKind: kind.entityKind, entityId: id, payload };
  };
  const plant = async ({ server, tenantId }: Stage) => {
    const post = await plantPost(server, tenantId);
    return { post, id: (await kind.create(server, post)).id };
  };
  const end = (what: string, endTime: (stage: Stage) => Promise<Pick<EndedWindow, "endTime">>) =>
    row({
      rpc: rpcs.end,
      what,
      before: async (stage) => ({ ...(await plant(stage)), window: await endTime(stage) }),
      call: ({ server, tenantId }, { id, window }) => kind.end(server, { tenantId, id, ...window }),
      events: (_, { post, id }, answer) => [event(kind.actions.end, id, post, answer)],
    });
  return [
    row({
      rpc: rpcs.create,
      before: async ({ server, tenantId }) => ({ ...(await plantPost(server, tenantId)), id: randomUUID() }),
      call: ({ server }, window) => kind.create(server, window),
      events: (_, window, answer) => [event(kind.actions.create, window.id, window, answer)],
    }),
    end("now", async () => ({})),
    end("later", async ({ server }) => ({ endTime: at((await databaseNow(server)) + 3_600_000_000n) })),
  ];
};

export const assignmentMutations = windowMutations(assignments, { create: "AssignRole", end: "EndAssignment" });
export const grantMutations = windowMutations(grants, { create: "GrantVisibility", end: "RevokeVisibility" });

const ofInvitation = (action: string, invitationId: string, payload = {}) => ({
  action,
  entityKind: "invitation",
  entityId: invitationId,
  payload,
});

export const invitationMutations = [
  row({
    rpc: "CreateInvitation",
    before: async () => ({ invitationId: randomUUID(), email: uniqueEmail() }),
    call: ({ server, tenantId }, invitation) => server.org.createInvitation({ tenantId, ...invitation }),
    events: (_, { invitationId }) => [ofInvitation("org.invitation.create", invitationId)],
  }),
  row({
    rpc: "CreateInvitation",
    what: "to a role at a node",
    before: async ({ server, tenantId }) => {
      const target = await addTarget(server, tenantId);
      return { invitationId: randomUUID(), email: uniqueEmail(), ...target };
    },
    call: ({ server, tenantId }, invitation) => server.org.createInvitation({ tenantId, ...invitation }),
    events: (_, { invitationId, roleId, nodeId }) => [
      ofInvitation("org.invitation.create", invitationId, { role_id: roleId, node_id: nodeId }),
    ],
  }),
  row({
    rpc: "AcceptInvitation",
    what: "by somebody new",
    before: async ({ server, tenantId }) => {
      const target = await addTarget(server, tenantId);
      return { target, ...(await invite(server, { tenantId, ...target })) };
    },
    call: ({ server }, { token }) =>
      server.org.acceptInvitation({ inviteToken: token, displayName: "Ann", password: PASSWORD }),
    events: (_, { target, invitation: { invitationId } }, { userId, assignment }) => {
      const assignmentId = assignment?.assignmentId;
      return [
        {
          action: "auth.user.create",
          entityKind: "user",
          entityId: userId,
          payload: { fields: ["email", "display_name", "password"], method: "invitation" },
        },
        {
          action: "org.assignment.create",
          entityKind: "assignment",
          entityId: assignmentId,
          payload: { ...namesOf.assignment({ tenantId: "", userId, ...target }), ...recordedTimes(assignment!) },
        },
        ofInvitation("org.invitation.accept", invitationId, { user_id: userId, assignment_id: assignmentId }),
      ];
    },
    refusesRepeats: true,
  }),
  row({
    rpc: "AcceptInvitation",
    what: "by the user of its contact",
    before: async ({ server, tenantId }) => {
      const { userId, email = "" } = await addUser(server, { tenantId });
      const { invitation, token } = await invite(server, { tenantId, email });
      return { userId, invitation, token, clients: await actingFor(server, { tenantId, userId }) };
    },
    call: (_, { clients, token }) => clients.org.acceptInvitation({ inviteToken: token }),
    events: (_, { userId, invitation: { invitationId } }) => [
      ofInvitation("org.invitation.accept", invitationId, { user_id: userId }),
    ],
    refusesRepeats: true,
  }),
  row({
    rpc: "RevokeInvitation",
    before: async ({ server, tenantId }) => (await invite(server, { tenantId })).invitation,
    call: ({ server, tenantId }, { invitationId }) => server.org.revokeInvitation({ tenantId, invitationId }),
    events: (_, { invitationId }) => [ofInvitation("org.invitation.revoke", invitationId)],
  }),
];
