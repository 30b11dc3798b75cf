import { randomBytes, randomUUID } from "node:crypto";
import { sql } from "slonik";
import { z } from "zod";
import type { AuditEvent } from "../../src/gen/org/v1/org_pb.ts";
import type { User } from "../../src/gen/auth/v1/auth_pb.ts";
import { refused } from "./refusals.ts";
import type { TestService } from "./service.ts";

/** An e-mail address that no other test has. */
export const uniqueEmail = (): string => `user-${randomBytes(8).toString("hex")}@example.com`;

/** A phone number that no other test has, in E.164. */
export const uniquePhone = (): string => `+49${1_500_000_000 + (randomBytes(4).readUInt32BE() % 100_000_000)}`;

export interface NewUser {
  readonly tenantId?: string;
  readonly email?: string;
  readonly phone?: string;
  readonly displayName?: string;
  readonly password?: string;
}

/** Creates a user by the API, with an e-mail address where it has no contact and in a tenant of its own where it has none. */
export const addUser = async (server: TestService, user: NewUser = {}): Promise<User> => {
  const contact = user.email === undefined && user.phone === undefined ? { email: uniqueEmail() } : {};
  const tenantId = user.tenantId ?? (await server.addTenant());
  const created = await server.auth.createUser({ ...contact, ...user, tenantId });
  return created.user!;
};

/** Marks contacts verified, as a code would. */
export const verifyContacts = (
  { pool }: TestService,
  { userId }: User,
  { email = false, phone = false }: { readonly email?: boolean; readonly phone?: boolean },
) =>
  pool.query(sql.unsafe`
    UPDATE users SET
      email_verified_utc = CASE WHEN ${email}::boolean THEN now() ELSE email_verified_utc END,
      phone_verified_utc = CASE WHEN ${phone}::boolean THEN now() ELSE phone_verified_utc END
    WHERE user_id = ${userId}::uuid`);

/** Puts a live one-time code into the database; answers with its id. */
export const plantCode = async (
  { pool }: TestService,
  code: { readonly tenantId: string; readonly userId?: string; readonly destination: string },
): Promise<string> => {
  const otpId = randomUUID();
  await pool.query(sql.unsafe`
    INSERT INTO otp_codes (otp_id, tenant_id, user_id, destination_text, channel_code, purpose_code, code_hash_text,
      expiry_utc)
    VALUES (${otpId}::uuid, ${code.tenantId}::uuid, ${code.userId ?? null}::uuid, ${code.destination}, 'email', 'login',
      '1:x', now() + interval '5 minutes')`);
  return otpId;
};

/** Those of the codes that could still be used. */
export const liveCodes = async ({ pool }: TestService, otpIds: readonly string[]): Promise<readonly string[]> => {
  const rows = await pool.any(sql.type(z.object({ otp_id: z.string() }))`
    SELECT otp_id FROM otp_codes WHERE otp_id = ANY(${sql.array(otpIds, "uuid")}) AND consumed_utc IS NULL`);
  return otpIds.filter((otpId) => rows.some((row) => row.otp_id === otpId));
};

/** The events about a thing, newest first. */
export const eventsOf = async ({ org }: TestService, entityId: string): Promise<readonly AuditEvent[]> =>
  (await org.listAuditEvents({ entityId, pageSize: 1_000 })).events;

/** Their actions, newest first. */
export const actionsOf = async (server: TestService, entityId: string): Promise<readonly string[]> =>
  (await eventsOf(server, entityId)).map(({ action }) => action);

/** What became of calls made at once: how many were answered, and the reasons of the others. */
export const outcomes = async (calls: readonly Promise<unknown>[]) => {
  const settled = await Promise.allSettled(calls);
  const failed = calls.filter((_, at) => settled[at]?.status === "rejected");
  const answers = await Promise.all(failed.map(refused));
  return { answered: calls.length - failed.length, reasons: answers.map(({ reason }) => reason) };
};

/** A user that is put into the database as it is. */
export interface Planted {
  readonly email: string | null;
  readonly phone: string | null;
  readonly name: string | null;
  readonly state?: "active" | "inactive";
}

/** Puts users into the database at once; answers with their ids. */
export const plantUsers = async (
  { pool }: TestService,
  tenantId: string,
  users: readonly Planted[],
): Promise<readonly string[]> => {
  const ids = users.map(() => randomUUID());
  const column = (read: (user: Planted) => string | null) => sql.array(users.map(read), "text");
  await pool.query(sql.unsafe`
    INSERT INTO users (user_id, tenant_id, email_addr, phone_e164, display_label, user_state_code)
    SELECT r.user_id, ${tenantId}::uuid, r.email, r.phone, r.label, r.state
    FROM unnest(${sql.array(ids, "uuid")}, ${column(({ email }) => email)}, ${column(({ phone }) => phone)},
      ${column(({ name }) => name)}, ${column(({ state = "active" }) => state)}) AS r (user_id, email, phone, label, state)`);
  return ids;
};

/** How many users the tenant has. */
export const countUsers = ({ pool }: Pick<TestService, "pool">, tenantId: string): Promise<number> =>
  pool.oneFirst(sql.type(z.object({ count: z.number() }))`
    SELECT count(*)::int4 AS count FROM users WHERE tenant_id = ${tenantId}::uuid`);
