import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { z } from "zod";
import { AccessScope, type Assignment, type VisibilityGrant } from "../../src/gen/org/v1/org_pb.ts";
import type { Reason } from "../../src/rpc/refusal.ts";
import { type Place, addRole, plantPlace } from "./roles.ts";
import type { Clients, TestService } from "./service.ts";

/** A user, a node and a role of one tenant. */
export interface Post extends Place {
  readonly roleId: string;
}

export const plantPost = async (server: TestService, tenantId?: string): Promise<Post> => {
  const place = await plantPlace(server, tenantId ?? (await server.addTenant()));
  const { roleId } = await addRole(server, { tenantId: place.tenantId });
  return { ...place, roleId };
};

interface NewWindow extends Post {
  readonly id?: string;
  /** Of a grant; to read where it is not set. */
  readonly scope?: AccessScope;
  readonly startTime?: Timestamp;
  readonly endTime?: Timestamp;
}

export interface EndedWindow {
  readonly tenantId: string;
  readonly id: string;
  readonly endTime?: Timestamp;
}

export type Windowed = (Assignment | VisibilityGrant) & { readonly id: string };

/** What assignments and grants have in common: they count for a time. */
export interface Kind {
  readonly name: string;
  readonly table: "org_assignments" | "visibility_grants";
  readonly entityKind: "assignment" | "visibility_grant";
  /** Its id in metadata. */
  readonly idKey: string;
  readonly actions: { readonly create: string; readonly end: string };
  readonly reasons: { readonly idTaken: Reason; readonly notFound: Reason };
  /** A content that differs in nothing but what this kind alone has. */
  readonly other: (server: TestService, post: Post) => Promise<Partial<NewWindow>>;
  create(clients: Pick<Clients, "org">, window: NewWindow): Promise<Windowed>;
  end(clients: Pick<Clients, "org">, window: EndedWindow): Promise<Windowed>;
  get(clients: Pick<Clients, "org">, window: { readonly tenantId: string; readonly id: string }): Promise<Windowed>;
}

const times = ({ startTime, endTime }: Partial<NewWindow>) => ({
  ...(startTime && { startTime }),
  ...(endTime && { endTime }),
});

const ofAssignment = ({ assignment }: { readonly assignment?: Assignment | undefined }): Windowed => ({
  ...assignment!,
  id: assignment!.assignmentId,
});

const ofGrant = ({ grant }: { readonly grant?: VisibilityGrant | undefined }): Windowed => ({
  ...grant!,
  id: grant!.grantId,
});

export const assignments: Kind = {
  name: "assignments",
  table: "org_assignments",
  entityKind: "assignment",
  idKey: "assignment_id",
  actions: { create: "org.assignment.create", end: "org.assignment.end" },
  reasons: { idTaken: "ASSIGNMENT_ID_TAKEN", notFound: "ASSIGNMENT_NOT_FOUND" },
  other: async (server, { tenantId }) => ({ roleId: (await addRole(server, { tenantId })).roleId }),
  create: async ({ org }, { id, tenantId, userId, nodeId, roleId, ...window }) => {
    const request = { tenantId, userId, nodeId, roleId, ...times(window) };
    return ofAssignment(await org.assignRole({ ...request, ...(id !== undefined && { assignmentId: id }) }));
  },
  end: async ({ org }, { tenantId, id, ...window }) =>
    ofAssignment(await org.endAssignment({ tenantId, assignmentId: id, ...times(window) })),
  get: async ({ org }, { tenantId, id }) => ofAssignment(await org.getAssignment({ tenantId, assignmentId: id })),
};

export const grants: Kind = {
  name: "visibility grants",
  table: "visibility_grants",
  entityKind: "visibility_grant",
  idKey: "grant_id",
  actions: { create: "org.visibility.grant", end: "org.visibility.revoke" },
  reasons: { idTaken: "VISIBILITY_GRANT_ID_TAKEN", notFound: "VISIBILITY_GRANT_NOT_FOUND" },
  other: () => Promise.resolve({ scope: AccessScope.ANALYZE }),
  create: async ({ org }, { id, tenantId, userId, nodeId, scope = AccessScope.READ, ...window }) => {
    const request = { tenantId, userId, nodeId, scope, ...times(window) };
    return ofGrant(await org.grantVisibility({ ...request, ...(id !== undefined && { grantId: id }) }));
  },
  end: async ({ org }, { tenantId, id, ...window }) =>
    ofGrant(await org.revokeVisibility({ tenantId, grantId: id, ...times(window) })),
  get: async ({ org }, { tenantId, id }) => ofGrant(await org.getVisibilityGrant({ tenantId, grantId: id })),
};

/** The database's clock, in microseconds since 1970. */
export const databaseNow = ({ pool }: TestService): Promise<bigint> =>
  pool.oneFirst(sql.type(z.object({ us: z.bigint() }))`
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us`);

/** So many microseconds since 1970, and nanoseconds. */
export const at = (us: bigint, nanos = 0): Timestamp => {
  const micros = ((us % 1_000_000n) + 1_000_000n) % 1_000_000n;
  return {
    $typeName: "google.protobuf.Timestamp",
    seconds: (us - micros) / 1_000_000n,
    nanos: Number(micros) * 1_000 + nanos,
  };
};

export const microsecondsOf = (time: Timestamp | undefined): bigint =>
  time!.seconds * 1_000_000n + BigInt(time!.nanos / 1_000);

const textOf = (time: Timestamp) => {
  const us = microsecondsOf(time);
  return new Date(Number(us / 1_000n)).toISOString().replace("Z", `${String(us % 1_000n).padStart(3, "0")}Z`);
};

/** What its events say of a window. */
export const recordedTimes = ({
  startTime,
  endTime,
  cancelTime,
}: Pick<Assignment, "startTime" | "endTime" | "cancelTime">) => ({
  start_time: textOf(startTime!),
  ...(endTime && { end_time: textOf(endTime) }),
  ...(cancelTime && { cancel_time: textOf(cancelTime) }),
});
