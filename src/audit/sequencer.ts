import { sql } from "slonik";
import { z } from "zod";
import type { Database } from "../db/pool.ts";
import { read, transact } from "../db/transact.ts";
import type { Log } from "../log.ts";
import { startPolling } from "../polling.ts";
import { detached } from "../rpc/call.ts";
import type { AuditHead } from "./head.ts";

const headRow = z.object({ position_val: z.bigint() });
const movedRow = z.object({ moved: z.bigint() });

// Events that one transaction moves, in some 30 ms: whoever waits for their rows waits no longer.
const BATCH = 2_000;
// Between two statements of a move nothing is done: whoever is silent for so long is frozen, or cut off, and all replicas'
// watchers hear nothing until his lock is gone, in milliseconds.
const IDLE_MS = 2_000;
// New positions whose tenants are looked up; behind more of them everybody is woken.
const TENANTS_WINDOW = 1_000n;

const stateRow = z.object({
  position_val: z.bigint(),
  audit_id: z.string().nullable(),
  known_id: z.string().nullable(),
  pending: z.boolean(),
  tenant_ids: z.array(z.string()),
});

/** One snapshot: the head, the event at `known`, whether anything waits for its position, and whose events came since. */
const selectState = (known: bigint) => sql.type(stateRow)`
  SELECT h.position_val, (SELECT o.audit_id FROM audit_order o WHERE o.position_val = h.position_val) AS audit_id,
    (SELECT o.audit_id FROM audit_order o WHERE o.position_val = ${known}::bigint) AS known_id,
    EXISTS (SELECT 1 FROM audit_pending) AS pending,
    ARRAY(
      SELECT DISTINCT o.tenant_id FROM audit_order o
      WHERE o.position_val > ${known}::bigint AND o.position_val <= ${known + TENANTS_WINDOW}::bigint
        AND o.tenant_id IS NOT NULL
    ) AS tenant_ids
  FROM audit_head h`;

const selectHeadForUpdate = () => sql.type(headRow)`
  SELECT h.position_val FROM audit_head h FOR UPDATE SKIP LOCKED`;

// The oldest by their ids, UUIDv7, since an order by time would sort a whole backlog for each batch. As an array: by a
// semi join each batch would read all that is pending.
const moveBatch = () => sql.type(movedRow)`
  WITH batch AS (
    DELETE FROM audit_pending p
    WHERE p.audit_id = ANY (ARRAY(SELECT q.audit_id FROM audit_pending q ORDER BY q.audit_id LIMIT ${BATCH}))
    RETURNING p.audit_id
  ), numbered AS (
    SELECT e.audit_id, e.tenant_id, row_number() OVER (ORDER BY e.occurred_utc, e.audit_id) AS place
    FROM batch b JOIN audit_events e ON e.audit_id = b.audit_id
  ), ordered AS (
    INSERT INTO audit_order (position_val, audit_id, tenant_id)
    SELECT h.position_val + n.place, n.audit_id, n.tenant_id FROM numbered n CROSS JOIN audit_head h
    RETURNING position_val
  ), total AS (
    SELECT count(*) AS moved FROM ordered
  )
  UPDATE audit_head h SET position_val = h.position_val + t.moved FROM total t
  RETURNING t.moved`;

/**
 * Gives the oldest pending events their positions, and says how many: 0 where another replica is at it.
 *
 * Why watchers miss nothing: an event is pending only once its transaction is committed, for nobody sees it before.
 * Positions are given out while the head's row is locked, alone in its statement, so that the move sees all that the
 * former holder of the lock has moved, and whoever comes next waits for this commit. So positions become visible in their
 * own order, without gaps: who has read up to a position can never see a new one at or before it. A move that fails
 * rolls back both, the positions and the head. A change that began after another's answer has a later time, and is seen
 * no earlier: it comes after the other, save in a backlog of more than a batch, where ids made by replicas whose clocks
 * differ may part the two.
 */
export const sequence = (db: Database): Promise<number> =>
  transact(
    db,
    detached(),
    async (tx) => {
      const head = await tx.maybeOne(selectHeadForUpdate());
      if (!head) return 0;
      const { moved } = await tx.one(moveBatch());
      return Number(moved);
    },
    { idleMs: IDLE_MS },
  );

/** What gives events their positions. */
export interface Sequencer {
  /** Resolves when it is not at work any more. */
  stop(): Promise<void>;
}

interface SequencerOptions {
  readonly db: Database;
  readonly head: AuditHead;
  readonly intervalMs: number;
  readonly log: Log;
  /** Whether the database answers, and is migrated. */
  readonly ready: () => boolean;
}

/**
 * Gives events their positions on every replica, one at a time, and tells this process's watchers how far they are. One
 * small statement each time where there is nothing to do; a backlog goes in batches one after the other.
 */
export const startSequencer = ({ db, head, intervalMs, log, ready }: SequencerOptions): Sequencer => {
  let stopped = false;
  let failing = false;
  let knownId: string | null = null;
  const mayWork = () => !stopped && ready();

  const tellWatchers = async () => {
    const known = head.position();
    const state = await read(db, detached(), (connection) => connection.one(selectState(known)));
    const { position_val: position, audit_id, known_id } = state;
    const tenants = position - known > TENANTS_WINDOW ? undefined : new Set(state.tenant_ids);
    // Not by the position alone: after a fail-over other replicas may have been at work before this one looks again.
    if (known_id === knownId) head.advance(position, tenants);
    else head.restart(position);
    knownId = audit_id;
    return state.pending;
  };

  const poll = async () => {
    if (!mayWork()) return;
    try {
      let pending = await tellWatchers();
      while (pending && mayWork()) {
        const moved = await sequence(db);
        const more = await tellWatchers();
        // What was recorded meanwhile waits for the next time: batches are not cut small by being early.
        pending = more && moved === BATCH;
      }
      failing = false;
    } catch (error) {
      // Once, and not ten times a second.
      if (!failing) log.warn({ err: error }, "audit events get no positions; tried again until they do");
      failing = true;
    }
  };

  const polling = startPolling(poll, intervalMs);
  return {
    stop() {
      stopped = true;
      polling.stop();
      return polling.now();
    },
  };
};
