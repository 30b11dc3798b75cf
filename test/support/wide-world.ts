import { createHash, randomUUID } from "node:crypto";
import { sql } from "slonik";
import { vi } from "vitest";
import { z } from "zod";
import { type OrgWorld, type PlantedWindow, plantWorld } from "./org-world.ts";
import { addCapabilities, addRole } from "./roles.ts";
import type { TestService } from "./service.ts";
import { addNode, plantSubtree } from "./trees.ts";
import { plantUnchecked } from "./admin.ts";

/** A tenant whose tree has ten nodes below each, and many users. */
export interface WideWorld {
  readonly tenantId: string;
  /** The root comes first, and the children of the node at n from 10 n + 1 on. */
  readonly nodes: readonly string[];
  readonly users: readonly string[];
  readonly capability: string;
}

/** Who has a role with the capability and sees all where, as places in those lists. */
export interface Holding extends PlantedWindow {
  readonly user: number;
  readonly node: number;
}

const TABLES = ["users", "org_nodes", "org_node_paths", "org_assignments", "visibility_grants"];

/** Answers whether VACUUM has found all rows visible to all: not while somebody has an older snapshot, such as autovacuum. */
const vacuumed = async ({ pool }: TestService, table: string): Promise<boolean> => {
  await pool.query(sql.unsafe`VACUUM (ANALYZE) ${sql.identifier([table])}`);
  return pool.oneFirst(sql.type(z.object({ visible: z.boolean() }))`
    SELECT relallvisible = relpages AS visible FROM pg_class WHERE oid = ${table}::regclass`);
};

/**
 * Committed to the disk: VACUUM finds no row visible to all whose commit is not there yet, and without that a covering
 * index is worth nothing to the planner.
 */
const plant = async (server: TestService, world: Partial<OrgWorld>) => {
  await plantUnchecked(server, async (tx) => {
    await tx.query(sql.unsafe`SET LOCAL synchronous_commit = on`);
    await plantWorld(tx, world);
  });
  for (const table of TABLES) await vi.waitUntil(() => vacuumed(server, table), { timeout: 30_000, interval: 20 });
};

/** As many nodes and users, and what they have, each as an assignment and as a grant. */
export const plantWide = async (
  server: TestService,
  counts: { readonly nodes: number; readonly users: number },
  holdings: readonly Holding[],
): Promise<WideWorld> => {
  const tenantId = await server.addTenant();
  const [capability] = await addCapabilities(server, "read");
  const { roleId } = await addRole(server, { tenantId, capabilityKeys: [capability!] });
  const { nodeId: root } = await addNode(server, tenantId);
  await plantSubtree(server, tenantId, root, counts.nodes - 1);
  const idOf = (n: number) =>
    createHash("md5")
      .update(`${root}${n}`)
      .digest("hex")
      .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  const nodes = Array.from({ length: counts.nodes }, (_, n) => (n === 0 ? root : idOf(n)));
  const users = Array.from({ length: counts.users }, () => randomUUID());
  const held = holdings.map(({ user, node, ...window }) => {
    return { ...window, tenantId, userId: users[user]!, nodeId: nodes[node]! };
  });
  await plant(server, {
    users: users.map((id) => ({ id, tenantId, active: true })),
    assignments: held.map((one) => ({ ...one, id: randomUUID(), roleId })),
    grants: held.map((one) => ({ ...one, id: randomUUID(), scope: "read" })),
  });
  return { tenantId, nodes, users, capability: capability! };
};

/** The place of the node above the one at this place. */
export const parentOf = (n: number): number => Math.floor((n - 1) / 10);
