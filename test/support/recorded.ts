import type { AuditEvent } from "../../src/gen/org/v1/org_pb.ts";
import type { TestService } from "./service.ts";

/** All that are there would be a thousand soon, for each call; a batch records twenty. */
const NEWEST = 30;

/** What was recorded while `work` ran, the first first; the tests of a server must run one after the other. */
export const recorded = async (server: TestService, work: () => Promise<unknown>): Promise<readonly AuditEvent[]> => {
  const newest = async () => (await server.org.listAuditEvents({ pageSize: NEWEST })).events;
  const before = new Set((await newest()).map(({ auditId }) => auditId));
  await work();
  const added = (await newest()).filter(({ auditId }) => !before.has(auditId));
  if (added.length === NEWEST) throw new Error(`${NEWEST} events or more were recorded`);
  return added.toReversed();
};
