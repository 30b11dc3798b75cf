import { type QuerySqlToken, sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { type AuthService, type ListUsersRequest, ListUsersRequestSchema, UserState } from "../gen/auth/v1/auth_pb.ts";
import type { Call } from "../rpc/call.ts";
import { CANDIDATES, candidateColumns, isLastCandidate } from "../rpc/candidates.ts";
import type { Handlers } from "../rpc/methods.ts";
import { type Page, cutPage, keyText, readPage } from "../rpc/page.ts";
import { withoutSeparators } from "./contacts.ts";
import type { AuthParts } from "./parts.ts";
import { userMessage, userRow } from "./users.ts";

// A list by prefix goes through these one after the other, each in the order of its column. One statement with an OR
// would read every user of the tenant.
const STAGES = ["email", "phone", "name"] as const;
type Stage = (typeof STAGES)[number];

/** The last user that was looked at: by what it was found, and its id. */
const stageKey = z.tuple([z.enum(STAGES), keyText, z.guid()]);
type StageKey = z.output<typeof stageKey>;

const foundRow = userRow.extend(candidateColumns);
type FoundRow = z.output<typeof foundRow>;
type StateCode = FoundRow["user_state_code"];

/** What begins with `start` stands from it, and before `end`, in the order of bytes; null where nothing comes after. */
interface Range {
  readonly start: string;
  readonly end: string | null;
}

interface Search {
  readonly tenantId: string;
  readonly state: StateCode | null;
  /** Null where the prefix is that of no e-mail address, or of no phone number. */
  readonly email: Range | null;
  readonly phone: Range | null;
  readonly name: Range;
}

export const selectUsers = (
  tenantId: string,
  state: StateCode | null,
  erased: boolean | null,
  after: string | null,
  limit: number,
) => sql.type(userRow)`
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc
  FROM users u
  WHERE u.tenant_id = ${tenantId}::uuid
    AND (${state}::text IS NULL OR u.user_state_code = ${state}::text)
    AND (${erased}::boolean IS NULL OR (u.erased_utc IS NOT NULL) = ${erased}::boolean)
    AND (${after}::uuid IS NULL OR u.user_id > ${after}::uuid)
  ORDER BY u.user_id
  LIMIT ${limit}`;

type Select = (search: Search, after: readonly [string, string] | readonly [null, null], limit: number) => SelectFound;
type SelectFound = QuerySqlToken<typeof foundRow>;

const selectByEmail: Select = ({ tenantId, state, email }, [after, afterId], limit) =>
  sql.type(foundRow)`
  SELECT w.user_id, w.tenant_id, w.email_addr, w.phone_e164, w.display_label, w.user_state_code, w.email_verified_utc,
    w.phone_verified_utc, w.erased_utc, w.created_utc, w.updated_utc, w.matches, w.position
  FROM (
    SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
      u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc,
      coalesce(${state}::text IS NULL OR u.user_state_code = ${state}::text, false) AS matches,
      row_number() OVER (ORDER BY u.email_addr COLLATE "C", u.user_id) AS position
    FROM users u
    WHERE u.tenant_id = ${tenantId}::uuid
      AND u.email_addr COLLATE "C" >= ${email?.start ?? null}::text
      AND (${email?.end ?? null}::text IS NULL OR u.email_addr COLLATE "C" < ${email?.end ?? null}::text)
      AND (${after}::text IS NULL OR (u.email_addr COLLATE "C", u.user_id) > (${after}::text, ${afterId}::uuid))
    ORDER BY u.email_addr COLLATE "C", u.user_id
    LIMIT ${CANDIDATES}
  ) w
  WHERE w.matches OR w.position = ${CANDIDATES}
  ORDER BY w.email_addr COLLATE "C", w.user_id
  LIMIT ${limit}`;

/** Those whose e-mail begins with the prefix were listed before. */
const selectByPhone: Select = ({ tenantId, state, email, phone }, [after, afterId], limit) =>
  sql.type(foundRow)`
  SELECT w.user_id, w.tenant_id, w.email_addr, w.phone_e164, w.display_label, w.user_state_code, w.email_verified_utc,
    w.phone_verified_utc, w.erased_utc, w.created_utc, w.updated_utc, w.matches, w.position
  FROM (
    SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
      u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc,
      coalesce((${state}::text IS NULL OR u.user_state_code = ${state}::text)
        AND NOT coalesce(starts_with(u.email_addr, ${email?.start ?? null}::text), false), false) AS matches,
      row_number() OVER (ORDER BY u.phone_e164 COLLATE "C", u.user_id) AS position
    FROM users u
    WHERE u.tenant_id = ${tenantId}::uuid
      AND u.phone_e164 COLLATE "C" >= ${phone?.start ?? null}::text
      AND u.phone_e164 COLLATE "C" < ${phone?.end ?? null}::text
      AND (${after}::text IS NULL OR (u.phone_e164 COLLATE "C", u.user_id) > (${after}::text, ${afterId}::uuid))
    ORDER BY u.phone_e164 COLLATE "C", u.user_id
    LIMIT ${CANDIDATES}
  ) w
  WHERE w.matches OR w.position = ${CANDIDATES}
  ORDER BY w.phone_e164 COLLATE "C", w.user_id
  LIMIT ${limit}`;

/** Those whose e-mail or phone begins with the prefix were listed before. */
const selectByName: Select = ({ tenantId, state, email, phone, name: { start, end } }, [after, afterId], limit) =>
  sql.type(foundRow)`
  SELECT w.user_id, w.tenant_id, w.email_addr, w.phone_e164, w.display_label, w.user_state_code, w.email_verified_utc,
    w.phone_verified_utc, w.erased_utc, w.created_utc, w.updated_utc, w.matches, w.position
  FROM (
    SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
      u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc,
      coalesce((${state}::text IS NULL OR u.user_state_code = ${state}::text)
        AND NOT coalesce(starts_with(u.email_addr, ${email?.start ?? null}::text), false)
        AND NOT coalesce(starts_with(u.phone_e164, ${phone?.start ?? null}::text), false), false) AS matches,
      row_number() OVER (ORDER BY u.display_label COLLATE "C", u.user_id) AS position
    FROM users u
    WHERE u.tenant_id = ${tenantId}::uuid
      AND u.display_label COLLATE "C" >= ${start}
      AND (${end}::text IS NULL OR u.display_label COLLATE "C" < ${end}::text)
      AND (${after}::text IS NULL OR (u.display_label COLLATE "C", u.user_id) > (${after}::text, ${afterId}::uuid))
    ORDER BY u.display_label COLLATE "C", u.user_id
    LIMIT ${CANDIDATES}
  ) w
  WHERE w.matches OR w.position = ${CANDIDATES}
  ORDER BY w.display_label COLLATE "C", w.user_id
  LIMIT ${limit}`;

/** By stage; exported for the test that holds their plans. */
export const SELECTS: Record<Stage, Select> = { email: selectByEmail, phone: selectByPhone, name: selectByName };

const keyOf = (stage: Stage, { email_addr, phone_e164, display_label, user_id }: FoundRow): StageKey => [
  stage,
  { email: email_addr, phone: phone_e164, name: display_label }[stage] ?? "",
  user_id,
];

const CODE_POINT_MAX = 0x10ffff;
const SURROGATES = { first: 0xd800, last: 0xdfff } as const;

/** Bytes of UTF-8 are in the order of code points: what follows all that begins with `start` has the next last one. */
const rangeOf = (start: string): Range => {
  const points = Array.from(start, (character) => character.codePointAt(0) ?? 0);
  while (points.at(-1) === CODE_POINT_MAX) points.pop();
  const last = points.pop();
  if (last === undefined) return { start, end: null };
  const next = last + 1 === SURROGATES.first ? SURROGATES.last + 1 : last + 1;
  return { start, end: String.fromCodePoint(...points, next) };
};

/** Phone numbers begin with a plus: who leaves it out, or writes what people set between digits, means the same. */
const phonePrefix = (prefix: string): string | undefined => {
  const written = withoutSeparators(prefix);
  return /^(\+\d*|\d+)$/.test(written) ? `+${written.replace("+", "")}` : undefined;
};

const rangeIfAny = (start: string | undefined) => (start ? rangeOf(start) : null);

export const searchOf = (tenantId: string, prefix: string, state: StateCode | null): Search => ({
  tenantId,
  state,
  // As addresses are stored: there is no blank in any, and all begin with nothing.
  email: rangeIfAny(prefix.trim().toLowerCase()),
  phone: rangeIfAny(phonePrefix(prefix)),
  name: rangeOf(prefix),
});

const stateCode = (state: UserState | undefined): StateCode | null => {
  if (state === UserState.ACTIVE) return "active";
  return state === UserState.INACTIVE ? "inactive" : null;
};

export const userListHandlers = ({ db }: AuthParts) => {
  const listAll = async (request: ListUsersRequest, call: Call) => {
    const page = readPage(ListUsersRequestSchema, request, z.guid());
    const { tenantId, state } = request;
    const erased = state === undefined ? null : state === UserState.ERASED;
    const list = selectUsers(tenantId, stateCode(state), erased, page.after ?? null, page.size + 1);
    const found = await read(db, call, (connection) => connection.any(list));
    const { rows, nextPageToken } = cutPage(page, found, (row) => row.user_id);
    return { users: rows.map(userMessage), nextPageToken };
  };

  /** Each stage fills what the ones before it have left of the page. */
  const listByPrefix = async (page: Page<StageKey>, search: Search, call: Call) => {
    const users: FoundRow[] = [];
    let last = page.after;
    for (const stage of STAGES.slice(last ? STAGES.indexOf(last[0]) : 0)) {
      if (search[stage] === null) continue;
      const room = page.size - users.length;
      const after = last?.[0] === stage ? ([last[1], last[2]] as const) : ([null, null] as const);
      const rows = await read(db, call, (connection) => connection.any(SELECTS[stage](search, after, room + 1)));
      const found = rows.filter(({ matches }) => matches);
      users.push(...found.slice(0, room));
      const isFull = found.length > room;
      const windowEnd = isFull ? undefined : rows.find(isLastCandidate);
      const lastRow = windowEnd ?? found.slice(0, room).at(-1);
      if (lastRow) last = keyOf(stage, lastRow);
      if (last && (isFull || windowEnd)) {
        return { users: users.map(userMessage), nextPageToken: page.tokenAfter(last) };
      }
    }
    return { users: users.map(userMessage), nextPageToken: "" };
  };

  return {
    async listUsers(request, call) {
      if (request.prefix === undefined) return listAll(request, call);
      const page = readPage(ListUsersRequestSchema, request, stageKey);
      // Nothing is left of an erased user that could begin with anything.
      if (request.state === UserState.ERASED) return { users: [], nextPageToken: "" };
      return listByPrefix(page, searchOf(request.tenantId, request.prefix, stateCode(request.state)), call);
    },
  } satisfies Partial<Handlers<typeof AuthService>>;
};
