import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { sql } from "slonik";
import { z } from "zod";
import { read } from "../db/transact.ts";
import { type AuthService, type GetUserRequest, type UserSchema, UserState } from "../gen/auth/v1/auth_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { type Refusal, refusal } from "../rpc/refusal.ts";
import { readContact } from "./contacts.ts";
import type { AuthParts } from "./parts.ts";

export const userRow = z.object({
  user_id: z.string(),
  tenant_id: z.string(),
  email_addr: z.string().nullable(),
  phone_e164: z.string().nullable(),
  display_label: z.string().nullable(),
  user_state_code: z.enum(["active", "inactive"]),
  email_verified_utc: z.number().nullable(),
  phone_verified_utc: z.number().nullable(),
  erased_utc: z.number().nullable(),
  created_utc: z.number(),
  updated_utc: z.number(),
});
export type UserRow = z.output<typeof userRow>;

export const selectUser = (tenantId: string, userId: string) => sql.prepared("select-user", userRow)`
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc
  FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.user_id = ${userId}::uuid`;

/**
 * For what makes or ends sessions, asks for codes, or changes identities or contacts: one after the other. Those who make
 * sessions do not share it, for enough of them would keep who ends them waiting for ever.
 */
export const lockUser = (tenantId: string, userId: string) => sql.type(userRow)`
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc
  FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.user_id = ${userId}::uuid
  FOR NO KEY UPDATE`;

/** For an erasure, which also waits for whoever gives the user rights, and they for it. */
export const lockUserForErasure = (tenantId: string, userId: string) => sql.type(userRow)`
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc
  FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.user_id = ${userId}::uuid
  FOR UPDATE`;

const selectUserByEmail = (tenantId: string, email: string) => sql.prepared("select-user-by-email", userRow)`
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc
  FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.email_addr = ${email}`;

const selectUserByPhone = (tenantId: string, phone: string) => sql.prepared("select-user-by-phone", userRow)`
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc
  FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.phone_e164 = ${phone}`;

const selectUsersByIds = (tenantId: string, userIds: readonly string[]) => sql.prepared("select-users-by-ids", userRow)`
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc
  FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.user_id = ANY(${sql.array(userIds, "uuid")})`;

const stateOf = (row: UserRow): UserState => {
  if (row.erased_utc !== null) return UserState.ERASED;
  return row.user_state_code === "active" ? UserState.ACTIVE : UserState.INACTIVE;
};

export const userMessage = (row: UserRow): MessageInitShape<typeof UserSchema> => ({
  userId: row.user_id,
  tenantId: row.tenant_id,
  ...(row.email_addr !== null && { email: row.email_addr }),
  ...(row.phone_e164 !== null && { phone: row.phone_e164 }),
  ...(row.display_label !== null && { displayName: row.display_label }),
  state: stateOf(row),
  emailVerified: row.email_verified_utc !== null,
  phoneVerified: row.phone_verified_utc !== null,
  createTime: timestampFromMs(row.created_utc),
  updateTime: timestampFromMs(row.updated_utc),
});

/** @param userId undefined where the user was named by a contact, which a refusal does not repeat. */
export const userNotFound = (userId: string | undefined): Refusal =>
  refusal("USER_NOT_FOUND", userId === undefined ? {} : { user_id: userId });

/** A locked user, if it can be changed: an erased one cannot. */
export const changeableUser = (user: UserRow | null, userId: string): UserRow | Refusal => {
  if (!user) return userNotFound(userId);
  return user.erased_utc === null ? user : refusal("USER_ERASED", { user_id: userId });
};

/** The event of a change to a user. */
export const userEvent = (action: string, tenantId: string, userId: string) =>
  ({ action, tenantId, entityKind: "user", entityId: userId }) as const;

const selectByKey = ({ tenantId, key }: GetUserRequest) => {
  if (key.case === "email") return selectUserByEmail(tenantId, readContact("email", key.value).text);
  if (key.case === "phone") return selectUserByPhone(tenantId, readContact("phone", key.value).text);
  return selectUser(tenantId, key.value ?? "");
};

export const userHandlers = ({ db }: AuthParts) =>
  ({
    async getUser(request, call) {
      const selected = selectByKey(request);
      const row = await read(db, call, (connection) => connection.maybeOne(selected));
      if (!row) throw userNotFound(request.key.case === "userId" ? request.key.value : undefined);
      return { user: userMessage(row) };
    },

    async batchGetUsers({ tenantId, userIds }, call) {
      const ids = new Set(userIds.map((id) => id.toLowerCase()));
      const rows = await read(db, call, (connection) => connection.any(selectUsersByIds(tenantId, [...ids])));
      const found = new Map(rows.map((row) => [row.user_id, row]));
      return { users: [...ids].flatMap((id) => found.get(id) ?? []).map(userMessage) };
    },
  }) satisfies Partial<Handlers<typeof AuthService>>;
