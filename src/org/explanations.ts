import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { NearMissReason, type OrgService } from "../gen/org/v1/org_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import type { AccessCheck } from "./access.ts";
import { assignmentMessage, assignmentRow } from "./assignments.ts";
import { type DecisionCode, decisionMessage } from "./decisions.ts";
import { nodeMessage, nodeRow } from "./nodes.ts";
import type { OrgParts } from "./parts.ts";

/**
 * Assignments and nodes of paths in an answer, of 1 KiB each at most: it stays below the 4 MiB that gRPC clients take. All
 * that somebody ever had, with a path of a hundred nodes for each, would be hundreds.
 */
const PARTS_MAX = 3_500;

const heldRow = assignmentRow.extend({
  role_label: z.string(),
  /** What its time says, now. */
  time_code: z.enum(["NOT_YET", "ENDED", "CANCELLED", "NOW"]),
  has_capability: z.boolean(),
});
type HeldRow = z.output<typeof heldRow>;

const standingRow = z.object({
  tenant_state_code: z.string().nullable(),
  user_state_code: z.string().nullable(),
  node_known: z.boolean(),
  capability_known: z.boolean(),
});

// Text in JSON, so that none is rounded.
const bigintText = z.string().transform(BigInt);

const explanationRow = standingRow.extend({
  nodes: z.array(nodeRow),
  held: z.array(
    heldRow.extend({ start_us: bigintText, end_us: bigintText.nullable(), cancelled_us: bigintText.nullable() }),
  ),
});
type ExplanationRow = z.output<typeof explanationRow>;

/**
 * All that the decision is made of, by one snapshot: the nodes from the asked one up, and what the user has on them; of more
 * than an answer takes what grants, and then the nearest. JSON has no time without end: the nearest that a Timestamp holds,
 * as where times are read.
 */
export const selectExplanation = ({ tenantId, userId, nodeId, capability }: AccessCheck) => sql.type(explanationRow)`
  SELECT t.tenant_state_code, u.user_state_code, n.org_node_id IS NOT NULL AS node_known,
    c.cap_id IS NOT NULL AS capability_known,
    coalesce((
      SELECT jsonb_agg(jsonb_build_object(
        'org_node_id', m.org_node_id, 'tenant_id', m.tenant_id, 'node_type_code', m.node_type_code,
        'node_label', m.node_label, 'parent_org_node_id', m.parent_org_node_id, 'active_flag', m.active_flag,
        'created_utc', floor(extract(epoch FROM
          least(greatest(m.created_utc, '0001-01-01 00:00:00+00'), '9999-12-31 23:59:59.999+00')) * 1000),
        'depth_val', m.depth_val
      ) ORDER BY m.distance)
      FROM (
        SELECT a.org_node_id, a.tenant_id, a.node_type_code, a.node_label, a.parent_org_node_id, a.active_flag,
          a.created_utc, p.depth_val AS distance, max(p.depth_val) OVER () - p.depth_val AS depth_val
        FROM org_node_paths p JOIN org_nodes a ON a.org_node_id = p.ancestor_org_node_id
        WHERE p.descendant_org_node_id = n.org_node_id
      ) m
    ), '[]') AS nodes,
    coalesce((
      SELECT jsonb_agg(jsonb_build_object(
        'assignment_id', y.assignment_id, 'tenant_id', y.tenant_id, 'user_id', y.user_id,
        'org_node_id', y.org_node_id, 'role_id', y.role_id,
        'start_us', ((extract(epoch FROM y.start_utc) * 1000000)::bigint)::text,
        'end_us', ((extract(epoch FROM y.end_utc) * 1000000)::bigint)::text,
        'cancelled_us', ((extract(epoch FROM y.cancelled_utc) * 1000000)::bigint)::text,
        'role_label', y.role_label, 'time_code', y.time_code, 'has_capability', y.has_capability
      ) ORDER BY y.depth_val, y.assignment_id)
      FROM (
        SELECT z.assignment_id, z.tenant_id, z.user_id, z.org_node_id, z.role_id, z.start_utc, z.end_utc, z.cancelled_utc,
          z.role_label, z.depth_val, z.time_code, z.has_capability
        FROM (
          SELECT x.assignment_id, x.tenant_id, x.user_id, x.org_node_id, x.role_id, x.start_utc, x.end_utc, x.cancelled_utc,
            CASE WHEN r.deleted_utc IS NULL THEN r.role_label ELSE split_part(r.role_label, '#' || r.role_id, 1) END AS role_label,
            p.depth_val,
            CASE
              WHEN x.cancelled_utc IS NOT NULL THEN 'CANCELLED'
              WHEN x.start_utc > now() THEN 'NOT_YET'
              WHEN x.end_utc <= now() THEN 'ENDED'
              ELSE 'NOW' END AS time_code,
            EXISTS (
              SELECT FROM role_capabilities h WHERE h.role_id = x.role_id AND h.cap_id = c.cap_id) AS has_capability
          FROM org_node_paths p
          CROSS JOIN LATERAL (
            SELECT a.assignment_id, a.tenant_id, a.user_id, a.org_node_id, a.role_id, a.start_utc, a.end_utc, a.cancelled_utc
            FROM org_assignments a
            WHERE a.user_id = u.user_id AND a.org_node_id = p.ancestor_org_node_id
            OFFSET 0
          ) x
          JOIN roles r ON r.role_id = x.role_id
          WHERE p.descendant_org_node_id = n.org_node_id
        ) z
        ORDER BY (z.time_code = 'NOW' AND z.has_capability) DESC, z.depth_val, z.assignment_id
        LIMIT ${PARTS_MAX}
      ) y
    ), '[]') AS held
  FROM (SELECT ${tenantId}::uuid AS tenant_id, ${userId}::uuid AS user_id, ${nodeId}::uuid AS org_node_id,
    ${capability}::text AS cap_key) asked
  LEFT JOIN tenants t ON t.tenant_id = asked.tenant_id
  LEFT JOIN users u ON u.tenant_id = asked.tenant_id AND u.user_id = asked.user_id
  LEFT JOIN org_nodes n ON n.tenant_id = asked.tenant_id AND n.org_node_id = asked.org_node_id
  LEFT JOIN capabilities c ON c.cap_key = asked.cap_key`;

const grants = ({ time_code, has_capability }: HeldRow) => time_code === "NOW" && has_capability;

const isClosed = ({ nodes }: ExplanationRow) => nodes.some(({ active_flag }) => !active_flag);

const decisionOf = (row: ExplanationRow): DecisionCode => {
  if (row.tenant_state_code === null) return "UNKNOWN_TENANT";
  if (row.tenant_state_code !== "active") return "TENANT_SUSPENDED";
  if (row.user_state_code === null) return "UNKNOWN_USER";
  if (row.user_state_code !== "active") return "USER_INACTIVE";
  if (!row.node_known) return "UNKNOWN_NODE";
  if (isClosed(row)) return "NODE_INACTIVE";
  if (!row.capability_known) return "UNKNOWN_CAPABILITY";
  return row.held.some(grants) ? "GRANTED" : "NO_GRANT";
};

const whyNot = (row: ExplanationRow, held: HeldRow): NearMissReason | undefined => {
  if (held.time_code !== "NOW") return NearMissReason[held.time_code];
  if (!held.has_capability) return NearMissReason.CAPABILITY_MISSING;
  return isClosed(row) ? NearMissReason.NODE_INACTIVE : undefined;
};

const pathFrom = ({ nodes }: ExplanationRow, nodeId: string) =>
  nodes.slice(0, nodes.findIndex(({ org_node_id }) => org_node_id === nodeId) + 1).reverse();

/** As many of the first as there is room for. */
const fitting = <Part>(parts: readonly Part[], room: number, sizeOf: (part: Part) => number) => {
  let left = room;
  const end = parts.findIndex((part) => (left -= sizeOf(part)) < 0);
  return parts.slice(0, end === -1 ? parts.length : end);
};

const explanation = (row: ExplanationRow) => {
  const code = decisionOf(row);
  const granting = (code === "GRANTED" ? row.held.filter(grants) : []).map((held) => ({
    assignment: assignmentMessage(held),
    roleLabel: held.role_label,
    path: pathFrom(row, held.org_node_id),
  }));
  // An assignment that only the state of its tenant or user holds up is told by the reason alone.
  const missing = row.held.flatMap((held) => {
    const why = whyNot(row, held);
    return why === undefined ? [] : [{ assignment: assignmentMessage(held), roleLabel: held.role_label, why }];
  });
  const sizeOf = ({ path }: (typeof granting)[number]) => 1 + path.length;
  const named = fitting(granting, PARTS_MAX, sizeOf);
  const room = PARTS_MAX - named.reduce((sum, grant) => sum + sizeOf(grant), 0);
  return {
    ...decisionMessage(code),
    grants: named.map((grant) => ({ ...grant, path: grant.path.map(nodeMessage) })),
    nearMisses: fitting(missing, room, () => 1),
  };
};

const capabilityKeyRow = z.object({ cap_key: z.string() });

/** A role's capabilities are read once, however often somebody has it. */
export const selectEffectiveCapabilities = (tenantId: string, userId: string, nodeId: string) => sql.type(
  capabilityKeyRow,
)`
  SELECT c.cap_key FROM capabilities c
  WHERE c.cap_id IN (
    SELECT h.cap_id
    FROM (
      SELECT DISTINCT granted.role_id
      FROM tenants t
      JOIN users u ON u.tenant_id = t.tenant_id
      JOIN org_nodes n ON n.tenant_id = t.tenant_id
      JOIN org_node_paths p ON p.descendant_org_node_id = n.org_node_id
      CROSS JOIN LATERAL (
        SELECT a.role_id FROM org_assignments a
        WHERE a.user_id = u.user_id AND a.org_node_id = p.ancestor_org_node_id
          AND a.start_utc <= now() AND a.lasts_utc > now()
        OFFSET 0
      ) granted
      WHERE t.tenant_id = ${tenantId}::uuid AND t.tenant_state_code = 'active'
        AND u.user_id = ${userId}::uuid AND u.user_state_code = 'active'
        AND n.org_node_id = ${nodeId}::uuid
        AND NOT EXISTS (
          SELECT FROM org_node_paths q
          JOIN org_nodes i ON i.org_node_id = q.ancestor_org_node_id AND NOT i.active_flag
          WHERE q.descendant_org_node_id = ${nodeId}::uuid)
    ) held
    JOIN role_capabilities h ON h.role_id = held.role_id
  )
  ORDER BY c.cap_key COLLATE "C"`;

export const explanationHandlers = ({ db }: OrgParts) =>
  ({
    async explainAccess(check, call) {
      return explanation(await read(db, call, (connection) => connection.one(selectExplanation(check))));
    },

    async listEffectiveCapabilities({ tenantId, userId, nodeId }, call) {
      const select = selectEffectiveCapabilities(tenantId, userId, nodeId);
      const rows = await read(db, call, (connection) => connection.any(select));
      return { capabilityKeys: rows.map(({ cap_key }) => cap_key) };
    },
  }) satisfies Partial<Handlers<typeof OrgService>>;
