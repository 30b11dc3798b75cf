import type { MessageInitShape } from "@bufbuild/protobuf";
import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { recordEvents } from "../audit/record.ts";
import { column } from "../db/columns.ts";
import { type Tx, transact } from "../db/transact.ts";
import { type AuthService, ImportStatus, type ImportUsersResponse_ResultSchema } from "../gen/auth/v1/auth_pb.ts";
import { missingTenant } from "../org/tenants.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Directory, type ImportRow, type Outcome, type Person, personOf, readRow } from "./import-rows.ts";
import type { AuthParts } from "./parts.ts";

const personRow = z.object({
  user_id: z.string(),
  tenant_id: z.string(),
  email_addr: z.string().nullable(),
  phone_e164: z.string().nullable(),
  display_label: z.string().nullable(),
  user_state_code: z.enum(["active", "inactive"]),
  email_verified_utc: z.number().nullable(),
  phone_verified_utc: z.number().nullable(),
  created_utc: z.number(),
  provider_subject_key: z.string().nullable(),
});
type PersonRow = z.output<typeof personRow>;

const userIdRow = z.object({ user_id: z.string() });

const isText = (text: string | null | undefined): text is string => typeof text === "string";

/** Everybody who has an id, contact or Google account of the rows. */
const selectPeople = (tenantId: string, rows: readonly ImportRow[]) => {
  const emails = rows.map(({ says }) => says.email).filter(isText);
  const phones = rows.map(({ says }) => says.phone).filter(isText);
  const subjectKeys = rows.map(({ says }) => says.subjectKey).filter(isText);
  return sql.type(personRow)`
  WITH met AS (
    SELECT u.user_id FROM users u WHERE u.user_id = ANY(${sql.array(column(rows, "userId"), "uuid")})
    UNION
    SELECT u.user_id FROM users u
    WHERE u.tenant_id = ${tenantId}::uuid AND u.email_addr = ANY(${sql.array(emails, "text")})
    UNION
    SELECT u.user_id FROM users u
    WHERE u.tenant_id = ${tenantId}::uuid AND u.phone_e164 = ANY(${sql.array(phones, "text")})
    UNION
    SELECT i.user_id FROM user_identities i
    WHERE i.ident_provider_code = 'google' AND i.provider_subject_key = ANY(${sql.array(subjectKeys, "text")})
  )
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.created_utc, i.provider_subject_key
  FROM met m
  JOIN users u ON u.user_id = m.user_id
  LEFT JOIN user_identities i ON i.user_id = u.user_id AND i.ident_provider_code = 'google'`;
};

/** Answers those whose id and contacts nobody had. */
const insertUsers = (tenantId: string, people: readonly Person[]) => {
  const createdTimes = people.map(({ createdMs }) =>
    createdMs === undefined ? null : new Date(createdMs).toISOString(),
  );
  return sql.type(userIdRow)`
  INSERT INTO users (user_id, tenant_id, email_addr, phone_e164, display_label, user_state_code, email_verified_utc,
    phone_verified_utc, created_utc)
  SELECT r.user_id, ${tenantId}::uuid, r.email_addr, r.phone_e164, r.display_label, r.user_state_code,
    CASE WHEN r.email_verified THEN now() END, CASE WHEN r.phone_verified THEN now() END,
    coalesce(r.created_utc, now())
  FROM unnest(${sql.array(column(people, "userId"), "uuid")}, ${sql.array(column(people, "email"), "text")},
    ${sql.array(column(people, "phone"), "text")}, ${sql.array(column(people, "displayName"), "text")},
    ${sql.array(column(people, "state"), "text")}, ${sql.array(column(people, "emailVerified"), "bool")},
    ${sql.array(column(people, "phoneVerified"), "bool")}, ${sql.array(createdTimes, "timestamptz")})
    AS r (user_id, email_addr, phone_e164, display_label, user_state_code, email_verified, phone_verified, created_utc)
  ON CONFLICT DO NOTHING
  RETURNING user_id`;
};

interface NewIdentity {
  readonly userId: string;
  readonly provider: "password" | "google";
  readonly subjectKey: string | null;
  readonly hash: string | null;
}

/** Answers the users whose identity nobody had. */
const insertIdentities = (identities: readonly NewIdentity[]) => {
  const identityIds = identities.map(() => uuidv7());
  return sql.type(userIdRow)`
  INSERT INTO user_identities (ident_id, user_id, ident_provider_code, provider_subject_key, password_hash_text)
  SELECT r.ident_id, r.user_id, r.ident_provider_code, r.provider_subject_key, r.password_hash_text
  FROM unnest(${sql.array(identityIds, "uuid")}, ${sql.array(column(identities, "userId"), "uuid")},
    ${sql.array(column(identities, "provider"), "text")}, ${sql.array(column(identities, "subjectKey"), "text")},
    ${sql.array(column(identities, "hash"), "text")})
    AS r (ident_id, user_id, ident_provider_code, provider_subject_key, password_hash_text)
  ON CONFLICT DO NOTHING
  RETURNING user_id`;
};

const deleteUsers = (tenantId: string, userIds: readonly string[]) => sql.type(userIdRow)`
  DELETE FROM users WHERE tenant_id = ${tenantId}::uuid AND user_id = ANY(${sql.array(userIds, "uuid")})
  RETURNING user_id`;

const personOfRow = (row: PersonRow): Person => ({
  userId: row.user_id,
  tenantId: row.tenant_id,
  email: row.email_addr,
  phone: row.phone_e164,
  displayName: row.display_label,
  subjectKey: row.provider_subject_key,
  emailVerified: row.email_verified_utc !== null,
  phoneVerified: row.phone_verified_utc !== null,
  state: row.user_state_code,
  createdMs: row.created_utc,
});

const readDirectory = async (tx: Tx, tenantId: string, rows: readonly ImportRow[]) =>
  new Directory(tenantId, (await tx.any(selectPeople(tenantId, rows))).map(personOfRow));

// Calls that share people meet them in the same order, so that none waits for one that waits for it.
const orderKey = ({ says }: ImportRow) => says.email ?? says.phone ?? "";
const inOrder = (rows: readonly ImportRow[]) => rows.toSorted((a, b) => (orderKey(a) < orderKey(b) ? -1 : 1));

/** Writes the rows that nobody was faster with, and answers their ids. */
const createUsers = async (tx: Tx, tenantId: string, rows: readonly ImportRow[]): Promise<ReadonlySet<string>> => {
  const ordered = inOrder(rows);
  const people = ordered.map((row) => personOf(tenantId, row));
  const inserted = new Set(column(await tx.any(insertUsers(tenantId, people)), "user_id"));
  const standing = ordered.filter(({ userId }) => inserted.has(userId));
  const accounts = standing.flatMap(({ userId, says }): NewIdentity[] =>
    isText(says.subjectKey) ? [{ userId, provider: "google", subjectKey: says.subjectKey, hash: null }] : [],
  );
  const linked = new Set(column(await tx.any(insertIdentities(accounts)), "user_id"));
  // An account that was linked since it was looked for: its row cannot stand, and nobody has seen the user yet.
  const unlinked = new Set(column(accounts, "userId")).difference(linked);
  if (unlinked.size > 0) await tx.any(deleteUsers(tenantId, [...unlinked]));
  const created = inserted.difference(unlinked);
  const passwords = standing.flatMap(({ userId, passwordHash }): NewIdentity[] =>
    isText(passwordHash) && created.has(userId)
      ? [{ userId, provider: "password", subjectKey: null, hash: passwordHash }]
      : [],
  );
  await tx.any(insertIdentities(passwords));
  return created;
};

const isRow = (entry: ImportRow | Outcome): entry is ImportRow => "says" in entry;

/** What would become of each row if nobody else wrote. */
const plan = (tenantId: string, directory: Directory, entries: readonly (ImportRow | Outcome)[]): Outcome[] =>
  entries.map((entry) => {
    if (!isRow(entry)) return entry;
    const outcome = directory.outcomeOf(entry);
    // It is in the way of those after it.
    if (outcome.status === "created") directory.add(personOf(tenantId, entry));
    return outcome;
  });

const writeRows = async (tx: Tx, call: Call, tenantId: string, entries: readonly (ImportRow | Outcome)[]) => {
  const rows = entries.filter(isRow);
  const outcomes = plan(tenantId, await readDirectory(tx, tenantId, rows), entries);
  const isPlanned = (index: number) => outcomes[index]?.status === "created";
  const planned = entries.filter((_, index) => isPlanned(index)).filter(isRow);
  if (planned.length === 0) return outcomes;
  const created = await createUsers(tx, tenantId, planned);
  const event = { action: "auth.user.import", tenantId, entityKind: "user" } as const;
  const events = planned.flatMap(({ userId }) => (created.has(userId) ? { ...event, entityId: userId } : []));
  await recordEvents(tx, call, events);
  if (created.size === planned.length) return outcomes;
  const directory = await readDirectory(tx, tenantId, rows);
  return entries.map((entry, index): Outcome => {
    if (!isRow(entry)) return entry;
    if (isPlanned(index) && created.has(entry.userId)) return { status: "created", userId: entry.userId };
    const outcome = directory.outcomeOf(entry);
    // Whoever was in the way is gone again: the caller may repeat it.
    return outcome.status === "created" ? { ...outcome, status: "refused", reason: "CONFLICT" } : outcome;
  });
};

const STATUSES = {
  created: ImportStatus.CREATED,
  unchanged: ImportStatus.UNCHANGED,
  refused: ImportStatus.REFUSED,
} as const;

const resultMessage = (outcome: Outcome): MessageInitShape<typeof ImportUsersResponse_ResultSchema> => ({
  userId: outcome.userId,
  status: STATUSES[outcome.status],
  ...(outcome.status === "refused" && { reason: outcome.reason }),
});

export const importHandlers = ({ db }: AuthParts) =>
  ({
    async importUsers({ tenantId: named, users }, call) {
      const tenantId = named.toLowerCase();
      const entries = users.map((user) => readRow(tenantId, user));
      const outcomes = await transact(db, call, async (tx) => {
        const missing = await missingTenant(tx, tenantId);
        if (missing) return missing;
        return writeRows(tx, call, tenantId, entries);
      });
      return { results: outcomes.map(resultMessage) };
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
