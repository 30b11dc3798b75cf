import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { ImportStatus } from "../../src/gen/auth/v1/auth_pb.ts";
import { startService, transports } from "../support/service.ts";

/** Few values, so that rows meet often; an id is a place in the run's own list of ids. */
interface Sketch {
  readonly id: number | undefined;
  readonly email: string | undefined;
  readonly phone: string | undefined;
  readonly googleSubject: string | undefined;
  readonly displayName: string | undefined;
}

interface Row {
  readonly userId?: string;
  readonly email?: string;
  readonly phone?: string;
  readonly googleSubject?: string;
  readonly displayName?: string;
}

const maybe = <T>(...values: readonly T[]) => fc.option(fc.constantFrom(...values), { nil: undefined });
const sketch: fc.Arbitrary<Sketch> = fc.record({
  id: maybe(0, 1, 2),
  email: maybe("a@example.com", "b@example.com", "c@example.com"),
  phone: maybe("+14155550001", "+14155550002"),
  googleSubject: maybe("1", "2"),
  displayName: maybe("Ann", "Bob"),
});

const rowOf = ({ id, ...rest }: Sketch, ids: readonly string[]): Row =>
  Object.fromEntries(Object.entries({ userId: id === undefined ? undefined : ids[id], ...rest }).filter(([, v]) => v));

const NAMES = ["userId", "email", "phone", "googleSubject", "displayName"] as const;

/** What the contract says of one row after the other, in plain code. */
const importIntoModel = (users: Row[], row: Row): string => {
  const owner = (name: (typeof NAMES)[number]) => users.find((user) => row[name] && user[name] === row[name]);
  const isSame = (user: Row) => NAMES.every((name) => row[name] === undefined || row[name] === user[name]);
  const found = row.userId ? owner("userId") : (owner("email") ?? owner("phone"));
  if (!row.email && !row.phone) return "INVALID_REQUEST";
  if (found && isSame(found)) return "UNCHANGED";
  if (owner("userId")) return "USER_ID_TAKEN";
  if (owner("email")) return "EMAIL_TAKEN";
  if (owner("phone")) return "PHONE_TAKEN";
  if (owner("googleSubject")) return "IDENTITY_TAKEN";
  users.push(row);
  return "CREATED";
};

const NAME_OF = new Map<number, string>(Object.entries(ImportStatus).map(([name, status]) => [status, name]));

test.each(transports)(
  "%s: rows end as the model says, twice, and no two users share what is unique",
  async (transport) => {
    const server = await startService(transport);
    const property = fc.asyncProperty(fc.array(sketch, { minLength: 1, maxLength: 14 }), async (sketches) => {
      const ids = [randomUUID(), randomUUID(), randomUUID()];
      const rows = sketches.map((one) => rowOf(one, ids));
      const tenantId = await server.addTenant();
      const imported = async () => {
        const { results } = await server.auth.importUsers({ tenantId, users: rows });
        return results.map(({ status, reason }) => reason ?? NAME_OF.get(status));
      };
      const model: Row[] = [];
      const first = await imported();
      expect(first).toEqual(rows.map((row) => importIntoModel(model, row)));
      const second = await imported();
      expect(second).toEqual(rows.map((row) => importIntoModel(model, row)));
      for (const [n, outcome] of first.entries()) if (outcome === "CREATED") expect(second[n]).toBe("UNCHANGED");
      const { users } = await server.auth.listUsers({ tenantId, pageSize: 1_000 });
      expect(users).toHaveLength(model.length);
      for (const name of ["userId", "email", "phone"] as const) {
        const values = users.map((user) => user[name]).filter(Boolean);
        expect(new Set(values).size).toBe(values.length);
      }
    });
    await fc.assert(property, { numRuns: 40 });
  },
);
