import type { DescService } from "@bufbuild/protobuf";
import { type CommonQueryMethods, sql } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import type { AuditEvent } from "../../src/gen/org/v1/org_pb.ts";
import { recorded } from "./recorded.ts";
import { expectRefusal, refused } from "./refusals.ts";
import { isRead } from "./rpcs.ts";
import { type TestService, type TransportName, transports } from "./service.ts";

/** Where a mutation happens. */
export interface Stage {
  readonly server: TestService;
  readonly tenantId: string;
}

/** What one event says, and nothing else. */
interface Recorded {
  readonly action: string;
  readonly entityKind: string;
  readonly entityId: string | undefined;
  /** The stage's where it is not named. */
  readonly tenantId?: string | undefined;
  readonly payload?: object;
}

/** A call that changes something, after what must be there for it. Methods, so that a table may hold any of them. */
export interface Mutation<S extends Stage, Made = unknown, Answer = unknown> {
  readonly rpc: string;
  /** Where the RPC records other things in other cases. */
  readonly what?: string;
  before?(stage: S): Promise<Made>;
  call(stage: S, made: Made): Promise<Answer>;
  events(stage: S, made: Made, answer: Answer): readonly Recorded[];
  /** The actions that a repeat records, where it changes something again. */
  readonly repeats?: readonly string[];
  readonly refusesRepeats?: true;
}

/** A table's row, whose parts know what the parts before it made. */
export const mutationOf =
  <S extends Stage>() =>
  <Made, Answer>(mutation: Mutation<S, Made, Answer>): Mutation<S> =>
    mutation;

// What is committed apart from a mutation: the counts of tries, here and in a code's `attempt_count`; the stream's order of
// events; the senders' signs of life.
const OTHERS = ["throttles", "audit_pending", "audit_order", "audit_head", "delivery_workers"];

const tableRow = z.object({ name: z.string() });
const contentRow = z.object({ content: z.string() });

type Rows = ReadonlySet<string>;

/** Every row of every table, events too. */
export const rowsOf = async (db: CommonQueryMethods): Promise<Rows> => {
  const tables = await db.any(sql.type(tableRow)`
    SELECT t.tablename AS name FROM pg_tables t
    WHERE t.schemaname = 'public' AND t.tablename <> ALL(${sql.array(OTHERS, "text")})`);
  const selects = tables.map(
    ({ name }) => sql.fragment`
      SELECT ${name} || ' ' || (to_jsonb(t) - 'attempt_count')::text AS content FROM ${sql.identifier([name])} t`,
  );
  const rows = await db.any(sql.type(contentRow)`${sql.join(selects, sql.fragment` UNION ALL `)}`);
  return new Set(rows.map(({ content }) => content));
};

/** While `work` runs, no event can be written. */
const withoutRecord = async ({ pool }: TestService, work: () => Promise<unknown>): Promise<void> => {
  await pool.query(sql.unsafe`ALTER TABLE audit_events ADD CONSTRAINT unwritable CHECK (false) NOT VALID`);
  try {
    await work();
  } finally {
    await pool.query(sql.unsafe`ALTER TABLE audit_events DROP CONSTRAINT unwritable`);
  }
};

const said = ({ action, entityKind, entityId, tenantId, actorServiceId, payload }: AuditEvent) => {
  const { request_id: requestId, ...rest } = payload ?? {};
  expect(requestId).toBeTruthy();
  return { action, entityKind, entityId, tenantId, actorServiceId, payload: rest };
};

const rootId = async ({ services }: TestService) =>
  (await services.getService({ selector: { case: "key", value: "root" } })).service?.serviceId;

const expectNothingWithoutRecord = async ({ server }: Stage, before: Rows, call: () => Promise<unknown>) => {
  const answered = () => expect.fail("answered while no event can be written: does it call recordEvent with its tx?");
  await withoutRecord(server, () => expectRefusal(call().then(answered), "INTERNAL"));
  expect(await rowsOf(server.pool)).toEqual(before);
};

const expectEvents = async <S extends Stage>(stage: S, made: unknown, { call, events }: Mutation<S>) => {
  let answer: unknown;
  const written = await recorded(stage.server, async () => {
    answer = await call(stage, made);
  });
  const actorServiceId = await rootId(stage.server);
  const expected = events(stage, made, answer).map((event) => ({
    actorServiceId,
    tenantId: stage.tenantId,
    payload: {},
    ...event,
  }));
  expect(written.map(said)).toEqual(expected);
};

const expectRepeat = async <S extends Stage>(stage: S, made: unknown, mutation: Mutation<S>) => {
  const { call, repeats = [], refusesRepeats } = mutation;
  const repeated = await recorded(stage.server, async () => {
    const again = call(stage, made);
    if (refusesRepeats) expect((await refused(again)).reason).not.toBe("INTERNAL");
    else await again;
  });
  expect(repeated.map(({ action }) => action)).toEqual(repeats);
};

export interface MutationTable<S extends Stage> {
  readonly service: DescService;
  /** The names of the RPCs that change something which no event tells of. */
  readonly silent?: readonly string[];
  readonly mutations: readonly Mutation<S>[];
  /** In a tenant of its own, or beside another stage in that one's. */
  plant(transport: TransportName, beside?: S): Promise<S>;
}

/** Holds each RPC of a service that changes something to the events that it writes. */
export const testMutations = <S extends Stage>({ service, silent = [], mutations, plant }: MutationTable<S>): void => {
  test("every RPC that changes something is held to the table of actions", () => {
    const changing = service.methods.filter((method) => !isRead(method)).map(({ name }) => name);
    const known = [...new Set(mutations.map(({ rpc }) => rpc)), ...silent];
    expect(known.sort(), "give it a row in the table, or, where it only reads, a name as isRead knows").toEqual(
      changing.sort(),
    );
  });

  describe.each(transports)("%s", (transport) => {
    test.each(mutations.map((mutation) => [`${mutation.rpc} ${mutation.what ?? ""}`.trim(), mutation] as const))(
      "%s writes its events, or nothing at all, in a repeat only what it changes again, and nothing of anybody else",
      async (_name, mutation) => {
        const stage = await plant(transport);
        const made = await mutation.before?.(stage);
        const { pool } = stage.server;
        const own = await rowsOf(pool);
        // What the call must leave as it is, in its tenant and in another one.
        for (const beside of [await plant(transport, stage), await plant(transport)]) await mutation.before?.(beside);
        const all = await rowsOf(pool);
        await expectNothingWithoutRecord(stage, all, () => mutation.call(stage, made));
        await expectEvents(stage, made, mutation);
        await expectRepeat(stage, made, mutation);
        const after = await rowsOf(pool);
        expect([...all.difference(own).difference(after)]).toEqual([]);
      },
    );
  });
};
