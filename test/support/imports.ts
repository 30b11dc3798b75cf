import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { hashSync as bcryptSync } from "bcryptjs";
import { expect } from "vitest";
import { ImportStatus, type ImportUsersRequest_UserSchema, UserState } from "../../src/gen/auth/v1/auth_pb.ts";
import { PASSWORD } from "./passwords.ts";
import type { TestService } from "./service.ts";

/** A user that is to be imported. */
export type Row = MessageInitShape<typeof ImportUsersRequest_UserSchema>;

/** The password as another system hashed it. */
export const BCRYPT = bcryptSync(PASSWORD, 4);

/** All that can be told of a person, but for the id. */
export const FULL = {
  email: " Ann@Example.COM ",
  phone: "+1 415 555 2671",
  displayName: "Ann",
  passwordHash: BCRYPT,
  googleSubject: "108204268033311374519",
  emailVerified: true,
  phoneVerified: true,
  state: UserState.INACTIVE,
  createTime: timestampFromDate(new Date("2014-05-06T07:08:09.123Z")),
} satisfies Row;

const STATUSES = new Map<number, string>(Object.entries(ImportStatus).map(([name, status]) => [status, name]));

/** What became of each row, in short: `CREATED`, `UNCHANGED` or the reason of its refusal. */
export const importRows = async ({ auth }: Pick<TestService, "auth">, tenantId: string, users: readonly Row[]) => {
  const { results } = await auth.importUsers({ tenantId, users: [...users] });
  for (const { status, reason } of results) expect(reason === undefined).toBe(status !== ImportStatus.REFUSED);
  return {
    ids: results.map(({ userId }) => userId),
    outcomes: results.map(({ status, reason }) => reason ?? STATUSES.get(status)),
  };
};

/** The same without the ids. */
export const outcomesOf = async (server: Pick<TestService, "auth">, tenantId: string, users: readonly Row[]) =>
  (await importRows(server, tenantId, users)).outcomes;

/** The users that events say were imported, and how many events there are. */
export const importedIds = async ({ org }: TestService, tenantId: string) => {
  const { events } = await org.listAuditEvents({ tenantId, action: "auth.user.import", pageSize: 1_000 });
  for (const event of events) expect(event).toMatchObject({ entityKind: "user", tenantId, payload: {} });
  return events.map(({ entityId }) => entityId);
};
