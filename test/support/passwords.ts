import { parseOptions } from "@node-rs/argon2";
import { sql } from "slonik";
import { z } from "zod";
import { oncePerFile } from "./per-file.ts";
import { type TestService, type TransportName, launchForFile } from "./service.ts";

/** One that the rule takes. */
export const PASSWORD = "correct horse bättery";
export const OTHER_PASSWORD = "another staple 123";

/** What @node-rs/argon2 makes such a hash with; its enums are not there for a compiler of single files. */
export const argon2Kind = (kind: "argon2i" | "argon2id", version: 16 | 19) => {
  const options = parseOptions(`$${kind}$v=${String(version)}$m=8,t=1,p=1$${"A".repeat(22)}$${"A".repeat(43)}`);
  return { algorithm: options.algorithm, version: options.version };
};

export const CHEAP_HASHES = { PASSWORD_HASH_MEMORY_KIB: "64", PASSWORD_HASH_PASSES: "1" };
/** How hashes of such a service begin. */
export const CHEAP_PREFIX = "$argon2id$v=19$m=64,t=1,p=1$";

/** As `startService`, for tests that hash much and fail often: hashing is cheap, and tries are not counted. */
export const startCheapService = oncePerFile((transport: TransportName) =>
  launchForFile(transport, { env: { ...CHEAP_HASHES, THROTTLES: "off" } }),
);

const hashRow = z.object({ password_hash_text: z.string().nullable() });

/** What the user's password identity holds; undefined where it has none. */
export const storedHash = async ({ pool }: TestService, userId: string): Promise<string | null | undefined> => {
  const row = await pool.maybeOne(sql.type(hashRow)`
    SELECT password_hash_text FROM user_identities
    WHERE user_id = ${userId}::uuid AND ident_provider_code = 'password'`);
  return row?.password_hash_text;
};

/** Gives a user a password identity as an import or a bulk load does. */
export const plantHash = ({ pool }: TestService, userId: string, hash: string | null) =>
  pool.query(sql.unsafe`
    INSERT INTO user_identities (ident_id, user_id, ident_provider_code, password_hash_text)
    VALUES (gen_random_uuid(), ${userId}::uuid, 'password', ${hash})
    ON CONFLICT (user_id, ident_provider_code) DO UPDATE SET password_hash_text = ${hash}`);

/** The user's sessions that have not ended. */
export const liveSessionIds = async ({ pool }: TestService, userId: string): Promise<readonly string[]> => {
  const rows = await pool.any(sql.type(z.object({ session_id: z.string() }))`
    SELECT session_id FROM refresh_sessions
    WHERE user_id = ${userId}::uuid AND revoked_utc IS NULL AND expiry_utc > now() ORDER BY session_id`);
  return rows.map((row) => row.session_id);
};
