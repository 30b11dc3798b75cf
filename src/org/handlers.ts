import type { OrgService } from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { auditEventHandlers } from "./audit-events.ts";
import { auditWatchHandlers } from "./audit-watch.ts";
import { capabilityHandlers } from "./capabilities.ts";
import type { OrgParts } from "./parts.ts";
import { roleUpdateHandlers } from "./role-updates.ts";
import { roleHandlers } from "./roles.ts";
import { tenantHandlers } from "./tenants.ts";

const notBuilt = () => Promise.reject(new Error("not built"));

/** All of OrgService. */
export const orgHandlers = (parts: OrgParts) =>
  ({
    ...tenantHandlers(parts.db, parts.forgetTokens),

    createNode: notBuilt,
    batchCreateNodes: notBuilt,
    getNode: notBuilt,
    updateNode: notBuilt,
    deleteNode: notBuilt,
    moveNode: notBuilt,
    activateNode: notBuilt,
    deactivateNode: notBuilt,
    listChildren: notBuilt,
    listAncestors: notBuilt,
    listDescendants: notBuilt,

    ...capabilityHandlers(parts),
    ...roleHandlers(parts),
    ...roleUpdateHandlers(parts),

    assignRole: notBuilt,
    endAssignment: notBuilt,
    getAssignment: notBuilt,
    listAssignments: notBuilt,
    grantVisibility: notBuilt,
    revokeVisibility: notBuilt,
    getVisibilityGrant: notBuilt,
    listVisibilityGrants: notBuilt,

    createInvitation: notBuilt,
    getInvitation: notBuilt,
    acceptInvitation: notBuilt,
    revokeInvitation: notBuilt,
    listInvitations: notBuilt,

    checkAccess: notBuilt,
    batchCheckAccess: notBuilt,
    checkVisibility: notBuilt,
    explainAccess: notBuilt,
    listEffectiveCapabilities: notBuilt,
    listAccessibleNodes: notBuilt,
    listUsersWithAccess: notBuilt,

    ...auditEventHandlers(parts.db),
    ...auditWatchHandlers(parts),
  }) satisfies Handlers<typeof OrgService>;
