import type { OrgService } from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { acceptingInvitationHandlers } from "./accepting-invitations.ts";
import { accessHandlers } from "./access.ts";
import { accessibleNodeHandlers } from "./accessible-nodes.ts";
import { assignmentListHandlers } from "./assignment-lists.ts";
import { assignmentHandlers } from "./assignments.ts";
import { auditEventHandlers } from "./audit-events.ts";
import { auditWatchHandlers } from "./audit-watch.ts";
import { capabilityHandlers } from "./capabilities.ts";
import { explanationHandlers } from "./explanations.ts";
import { invitationListHandlers } from "./invitation-lists.ts";
import { invitationHandlers } from "./invitations.ts";
import { nodeCreationHandlers } from "./node-creation.ts";
import { nodeListHandlers } from "./node-lists.ts";
import { nodeMoveHandlers } from "./node-moves.ts";
import { nodeStateHandlers } from "./node-states.ts";
import { nodeHandlers } from "./nodes.ts";
import type { OrgParts } from "./parts.ts";
import { roleUpdateHandlers } from "./role-updates.ts";
import { roleHandlers } from "./roles.ts";
import { tenantHandlers } from "./tenants.ts";
import { createTreeWriter } from "./tree.ts";
import { usersWithAccessHandlers } from "./users-with-access.ts";
import { visibilityCheckHandlers } from "./visibility-checks.ts";
import { visibilityListHandlers } from "./visibility-lists.ts";
import { visibilityHandlers } from "./visibility.ts";

/** All of OrgService. */
export const orgHandlers = (parts: OrgParts): Handlers<typeof OrgService> => {
  const writeTree = createTreeWriter(parts);
  return {
    ...tenantHandlers(parts),

    ...nodeHandlers(parts, writeTree),
    ...nodeCreationHandlers(parts, writeTree),
    ...nodeMoveHandlers(parts, writeTree),
    ...nodeStateHandlers(parts),
    ...nodeListHandlers(parts),

    ...capabilityHandlers(parts),
    ...roleHandlers(parts),
    ...roleUpdateHandlers(parts),

    ...assignmentHandlers(parts),
    ...assignmentListHandlers(parts),
    ...visibilityHandlers(parts),
    ...visibilityListHandlers(parts),

    ...invitationHandlers(parts),
    ...acceptingInvitationHandlers(parts),
    ...invitationListHandlers(parts),

    ...accessHandlers(parts),
    ...visibilityCheckHandlers(parts),
    ...explanationHandlers(parts),
    ...accessibleNodeHandlers(parts),
    ...usersWithAccessHandlers(parts),

    ...auditEventHandlers(parts),
    ...auditWatchHandlers(parts),
  };
};
