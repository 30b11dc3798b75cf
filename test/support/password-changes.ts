import { sql } from "slonik";
import { z } from "zod";
import { PASSWORD } from "./passwords.ts";
import type { TestService } from "./service.ts";
import { addUser, plantCode, uniqueEmail } from "./users.ts";

/** What takes the place of PASSWORD. */
export const NEW_PASSWORD = "a third one, unheard of";

/** A user with a password, and what signs in by one. */
export const someone = async (server: TestService, tenantId?: string) => {
  const user = await addUser(server, { password: PASSWORD, ...(tenantId && { tenantId }) });
  const own = { tenantId: user.tenantId, userId: user.userId };
  const login = async (password: string) => {
    const identifier = { case: "email", value: user.email ?? "" } as const;
    const { tokens } = await server.auth.loginWithPassword({ tenantId: user.tenantId, identifier, password });
    return tokens!.sessionId;
  };
  return { ...own, own, email: user.email ?? "", login };
};

/** A code that resets the user's password, and one that does not. */
export const plantCodes = async (server: TestService, { tenantId, userId }: { tenantId: string; userId: string }) => {
  const plant = () => plantCode(server, { tenantId, userId, destination: uniqueEmail() });
  const [reset, login] = [await plant(), await plant()];
  await server.pool.query(sql.unsafe`
    UPDATE otp_codes SET purpose_code = 'reset_password' WHERE otp_id = ${reset}::uuid`);
  return { reset, login };
};

/** Why the user's sessions were ended, each reason once. */
export const endReasons = async ({ pool }: TestService, userId: string) => {
  const rows = await pool.any(sql.type(z.object({ end_reason_code: z.string().nullable() }))`
    SELECT DISTINCT end_reason_code FROM refresh_sessions WHERE user_id = ${userId}::uuid AND revoked_utc IS NOT NULL`);
  return rows.map((row) => row.end_reason_code);
};
