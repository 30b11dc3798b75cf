import { sql } from "slonik";
import { z } from "zod";
import { type Gate, createGate } from "../gate.ts";
import { type TransactOptions, type Tx, read, transact } from "../db/transact.ts";
import { type Call, detached } from "../rpc/call.ts";
import type { Refusal } from "../rpc/refusal.ts";
import type { OrgParts } from "./parts.ts";

/*
 * `org_node_paths` has a row for each node and each node above it, with their distance, and one for the node itself, with
 * distance 0. It is written together with `parent_org_node_id` and always says the same.
 */

const tenantIdRow = z.object({ tenant_id: z.string() });
const lockedRow = z.object({ pid: z.number() });
const cancelledRow = z.object({ cancelled: z.boolean() });

const lockTreeRow = (tenantId: string) => sql.type(lockedRow)`
  SELECT pg_backend_pid() AS pid FROM tenant_tree_locks l WHERE l.tenant_id = ${tenantId}::uuid FOR UPDATE`;

const insertTreeLock = (tenantId: string) => sql.type(tenantIdRow)`
  INSERT INTO tenant_tree_locks (tenant_id) SELECT t.tenant_id FROM tenants t WHERE t.tenant_id = ${tenantId}::uuid
  ON CONFLICT (tenant_id) DO NOTHING
  RETURNING tenant_id`;

const cancelStatement = (pid: number) => sql.type(cancelledRow)`SELECT pg_cancel_backend(${pid}) AS cancelled`;

/**
 * Where there is such a tenant, this transaction is the only one that changes its tree.
 * @returns the process that serves it; null where there is no such tenant.
 */
const lockTree = async (tx: Tx, tenantId: string): Promise<number | null> => {
  const locked = await tx.maybeOne(lockTreeRow(tenantId));
  if (locked) return locked.pid;
  await tx.maybeOne(insertTreeLock(tenantId));
  return (await tx.maybeOne(lockTreeRow(tenantId)))?.pid ?? null;
};

/**
 * Runs the long statements of a transaction, and ends the one under way when the caller gives up, since it would keep the
 * tree to its own limit. The transaction goes on only once that has been said: nobody else's statement is met by it. It is
 * said on a connection beside the pool, all of which may be held by those who are waiting to say so.
 */
const whileWanted = async <T>({ probe }: OrgParts, call: Call, pid: number, body: () => Promise<T>): Promise<T> => {
  let cancelling: Promise<unknown> | undefined;
  const stay = call.whenOver(() => {
    const cancelled = read(probe, detached(), (connection) => connection.one(cancelStatement(pid)));
    // Where that fails the statement's own limit ends it.
    cancelling = cancelled.catch(() => undefined);
  });
  try {
    return await body();
  } finally {
    stay();
    await cancelling;
  }
};

interface TreeWrite extends Pick<TransactOptions, "statementTimeoutMs"> {
  readonly call: Call;
  readonly tenantId: string;
  /** What is answered where there is no such tenant. */
  readonly unknown: Refusal;
}

/** Runs a transaction that changes a tenant's tree, as the only one that does. */
export type TreeWriter = <T>(write: TreeWrite, body: (tx: Tx) => Promise<T>) => Promise<Exclude<T, Refusal>>;

/**
 * How many writers of one tree may have a connection: one that writes, and one whose transaction has begun when that one
 * ends. All others of the tenant wait here, since in the database they would take every connection from the readers.
 */
const CONNECTED = 2;

/** Of the pool's connections, which the writers of all trees leave to the others: they may write for minutes. */
const SHARE_OF_OTHERS = 0.2;

export const createTreeWriter = (parts: OrgParts): TreeWriter => {
  const { db, config } = parts;
  const { poolMax, poolQueue: queueMax, poolWaitMs: waitMs } = config.database;
  const size = Math.max(1, poolMax - Math.ceil(poolMax * SHARE_OF_OTHERS));
  const connections = createGate({ size, queueMax, waitMs });
  const gates = new Map<string, Gate>();

  const gateOf = (tenantId: string): Gate => {
    const gate = gates.get(tenantId) ?? createGate({ size: CONNECTED, queueMax, waitMs });
    gates.set(tenantId, gate);
    return gate;
  };

  return <T>({ call, tenantId: named, unknown, statementTimeoutMs }: TreeWrite, body: (tx: Tx) => Promise<T>) => {
    const tenantId = named.toLowerCase();
    const answer = Promise.withResolvers<Exclude<T, Refusal>>();
    const last: { try?: PromiseWithResolvers<undefined> } = {};
    const work = async (tx: Tx) => {
      last.try = Promise.withResolvers();
      const pid = await lockTree(tx, tenantId);
      if (pid === null) return unknown;
      // Who gave up while it waited shall not keep the tree for a whole move, only to undo it.
      call.throwIfOver();
      return statementTimeoutMs === undefined ? body(tx) : whileWanted(parts, call, pid, () => body(tx));
    };
    /** Answers the caller when it gives up, and keeps the place until its transaction has let the connection go. */
    const write = async () => {
      const options = { statementTimeoutMs, settled: () => last.try?.resolve(undefined) };
      await transact(db, call, work, options).then(answer.resolve, answer.reject);
      await last.try?.promise;
    };
    const gate = gateOf(tenantId);
    const entered = gate.enter(() => connections.enter(write, call), call).catch(answer.reject);
    void entered.then(() => {
      const { inside, waiting } = gate.load();
      if (inside + waiting === 0 && gates.get(tenantId) === gate) gates.delete(tenantId);
    });
    return answer.promise;
  };
};
