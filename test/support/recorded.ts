import type { AuditEvent } from "../../src/gen/org/v1/org_pb.ts";
import type { TestService } from "./service.ts";

/** What was recorded while `work` ran, the first first; the tests of a server must run one after the other. */
export const recorded = async (server: TestService, work: () => Promise<unknown>): Promise<readonly AuditEvent[]> => {
  const events = async () => (await server.org.listAuditEvents({ pageSize: 1_000 })).events;
  const before = new Set((await events()).map(({ auditId }) => auditId));
  await work();
  return (await events()).filter(({ auditId }) => !before.has(auditId)).toReversed();
};
