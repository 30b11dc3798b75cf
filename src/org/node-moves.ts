import { sql } from "slonik";
import { z } from "zod";
import { recordEvent } from "../audit/record.ts";
import { noRow } from "../db/batches.ts";
import { column } from "../db/columns.ts";
import type { OrgService } from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { refusal } from "../rpc/refusal.ts";
import { nodeEvent, nodeMessage, nodeNotFound, nodeRow, selectNodes } from "./nodes.ts";
import type { OrgParts } from "./parts.ts";
import type { TreeWriter } from "./tree.ts";

const movedRow = z.object({ height: z.number(), node_ids: z.string() });
const movedNodeRow = nodeRow.omit({ depth_val: true });

const pathRow = z.object({
  descendant_org_node_id: z.string(),
  ancestor_org_node_id: z.string(),
  depth_val: z.number(),
});
type PathRow = z.output<typeof pathRow>;

const selectPathsUp = (nodeIds: readonly string[]) => sql.prepared("select-paths-up", pathRow)`
  SELECT p.descendant_org_node_id, p.ancestor_org_node_id, p.depth_val
  FROM org_node_paths p WHERE p.descendant_org_node_id = ANY(${sql.array(nodeIds, "uuid")})`;

/**
 * A node and all below it. Their ids go back as they come, as the text of an array: of what a parameter holds the planner knows
 * how many there are, also where the table's statistics are old, and joins no 20,000 rows with 20,000 by comparing each pair.
 */
const selectMoved = (nodeId: string) => sql.prepared("select-moved", movedRow)`
  SELECT coalesce(max(p.depth_val), 0) AS height, coalesce(array_agg(p.descendant_org_node_id)::text, '{}') AS node_ids
  FROM org_node_paths p WHERE p.ancestor_org_node_id = ${nodeId}::uuid`;

/** An ancestor of what is moved. */
interface Ancestor {
  readonly id: string;
  /** How far above the moved node. */
  readonly distance: number;
}

/** The rows of one ancestor for all that is moved, which become those of another one or another distance. */
interface Change {
  readonly from: Ancestor;
  readonly to: Ancestor;
}

interface PathChanges {
  readonly changed: readonly Change[];
  readonly removed: readonly Ancestor[];
  readonly added: readonly Ancestor[];
}

/**
 * What a move does to the rows of the ancestors: where as many come as go, rows change hands, which costs one foreign key's
 * check and not the three of a new row; and those of an ancestor that stays at its distance are not written at all.
 */
const pathChanges = (before: readonly Ancestor[], after: readonly Ancestor[]): PathChanges => {
  const afterById = new Map(after.map((ancestor) => [ancestor.id, ancestor]));
  const beforeIds = new Set(before.map(({ id }) => id));
  const going = before.filter(({ id }) => !afterById.has(id));
  const coming = after.filter(({ id }) => !beforeIds.has(id));
  const staying = before.flatMap((from): Change[] => {
    const to = afterById.get(from.id);
    return to && to.distance !== from.distance ? [{ from, to }] : [];
  });
  const replaced = going.flatMap((from, index): Change[] => {
    const to = coming[index];
    return to ? [{ from, to }] : [];
  });
  return {
    changed: [...staying, ...replaced],
    removed: going.slice(coming.length),
    added: coming.slice(going.length),
  };
};

const idsOf = (ancestors: readonly Ancestor[]) => sql.array(column(ancestors, "id"), "uuid");
const distancesOf = (ancestors: readonly Ancestor[]) => sql.array(column(ancestors, "distance"), "int4");

/** Changes the rows of all that is moved, by one statement, which holds the move's time limit. */
const updatePaths = (nodeId: string, movedIds: string, { changed, removed, added }: PathChanges) => {
  const [from, to] = [column(changed, "from"), column(changed, "to")];
  return sql.type(noRow)`
  WITH updated AS (
    UPDATE org_node_paths p SET ancestor_org_node_id = c.to_id, depth_val = p.depth_val + c.to_distance - c.from_distance
    FROM unnest(${idsOf(from)}, ${distancesOf(from)}, ${idsOf(to)}, ${distancesOf(to)})
      AS c (from_id, from_distance, to_id, to_distance)
    WHERE p.ancestor_org_node_id = c.from_id AND p.descendant_org_node_id = ANY(${movedIds}::uuid[])
  ), deleted AS (
    DELETE FROM org_node_paths p
    WHERE p.ancestor_org_node_id = ANY(${idsOf(removed)}) AND p.descendant_org_node_id = ANY(${movedIds}::uuid[])
  )
  INSERT INTO org_node_paths (tenant_id, ancestor_org_node_id, descendant_org_node_id, depth_val)
  SELECT m.tenant_id, a.id, m.descendant_org_node_id, m.depth_val + a.distance
  FROM org_node_paths m CROSS JOIN unnest(${idsOf(added)}, ${distancesOf(added)}) AS a (id, distance)
  WHERE m.ancestor_org_node_id = ${nodeId}::uuid`;
};

const updateParent = (tenantId: string, nodeId: string, parentId: string | null) =>
  sql.prepared("update-parent", movedNodeRow)`
  UPDATE org_nodes SET parent_org_node_id = ${parentId}::uuid
  WHERE tenant_id = ${tenantId}::uuid AND org_node_id = ${nodeId}::uuid
  RETURNING org_node_id, tenant_id, node_type_code, node_label, parent_org_node_id, active_flag, created_utc`;

const ancestorsOf = (nodeId: string, paths: readonly PathRow[]): readonly Ancestor[] =>
  paths
    .filter((path) => path.descendant_org_node_id === nodeId)
    .map((path) => ({ id: path.ancestor_org_node_id, distance: path.depth_val }));

export const nodeMoveHandlers = ({ config }: OrgParts, writeTree: TreeWriter) =>
  ({
    async moveNode(request, call) {
      const tenantId = request.tenantId.toLowerCase();
      const nodeId = request.nodeId.toLowerCase();
      const parentId = request.newParentNodeId?.toLowerCase() ?? null;
      const { depthMax, moveTimeoutMs: statementTimeoutMs } = config.tree;
      const unknown = nodeNotFound(nodeId);
      const row = await writeTree({ call, tenantId, unknown, statementTimeoutMs }, async (tx) => {
        const ids = [nodeId, ...(parentId === null ? [] : [parentId])];
        const nodes = (await tx.any(selectNodes(ids))).filter((node) => node.tenant_id === tenantId);
        const node = nodes.find(({ org_node_id: id }) => id === nodeId);
        if (!node) return nodeNotFound(nodeId);
        if (parentId !== null && !nodes.some(({ org_node_id: id }) => id === parentId)) return nodeNotFound(parentId);
        if (node.parent_org_node_id === parentId) return node;

        const paths = await tx.any(selectPathsUp(ids));
        const above = parentId === null ? [] : ancestorsOf(parentId, paths);
        if (above.some(({ id }) => id === nodeId)) return refusal("NODE_CYCLE", { node_id: nodeId });
        const { height, node_ids: movedIds } = await tx.one(selectMoved(nodeId));
        if (above.length + height > depthMax) return refusal("NODE_TOO_DEEP", { node_id: nodeId });

        const from = ancestorsOf(nodeId, paths).filter(({ id }) => id !== nodeId);
        const to = above.map(({ id, distance }) => ({ id, distance: distance + 1 }));
        await tx.query(updatePaths(nodeId, movedIds, pathChanges(from, to)));
        // Last, since its lock makes whoever changes the node itself wait.
        const after = await tx.one(updateParent(tenantId, nodeId, parentId));
        const payload = {
          ...(node.parent_org_node_id !== null && { former_parent_node_id: node.parent_org_node_id }),
          ...(parentId !== null && { parent_node_id: parentId }),
        };
        await recordEvent(tx, call, nodeEvent("org.node.move", tenantId, nodeId, payload));
        return { ...after, depth_val: above.length };
      });
      return { node: nodeMessage(row) };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
