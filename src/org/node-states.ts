import { sql } from "slonik";
import { recordEvent } from "../audit/record.ts";
import { transact } from "../db/transact.ts";
import type { OrgService } from "../gen/org/v1/org_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { lockNode, nodeEvent, nodeIdRow, nodeMessage, nodeNotFound, selectNode } from "./nodes.ts";
import type { OrgParts } from "./parts.ts";

const updateNodeActive = (tenantId: string, nodeId: string, active: boolean) =>
  sql.type(nodeIdRow)`
  UPDATE org_nodes SET active_flag = ${active}
  WHERE tenant_id = ${tenantId}::uuid AND org_node_id = ${nodeId}::uuid
  RETURNING org_node_id`;

export const nodeStateHandlers = ({ db }: OrgParts) => {
  const setActive = async (tenantId: string, nodeId: string, active: boolean, call: Call) => {
    const row = await transact(db, call, async (tx) => {
      // One row, no tree lock: who stands below is closed by the decision, not by a write.
      const before = await tx.maybeOne(lockNode(tenantId, nodeId));
      if (!before) return nodeNotFound(nodeId);
      if (before.active_flag !== active) {
        await tx.one(updateNodeActive(tenantId, nodeId, active));
        const action = active ? "org.node.activate" : "org.node.deactivate";
        await recordEvent(tx, call, nodeEvent(action, tenantId, nodeId));
      }
      return tx.one(selectNode(tenantId, nodeId));
    });
    return { node: nodeMessage(row) };
  };

  return {
    activateNode: ({ tenantId, nodeId }, call) => setActive(tenantId, nodeId, true, call),
    deactivateNode: ({ tenantId, nodeId }, call) => setActive(tenantId, nodeId, false, call),
  } satisfies Partial<Handlers<typeof OrgService>>;
};
