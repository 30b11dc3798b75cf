import { sql } from "slonik";

interface Owner {
  readonly userId: string;
}

/** As whoever changes a user locks it. */
export const lockUser = ({ userId }: Owner) =>
  sql.unsafe`SELECT FROM users WHERE user_id = ${userId}::uuid FOR NO KEY UPDATE`;

/** What an erasure makes of the user's own row. */
export const eraseUser = ({ userId }: Owner) => sql.unsafe`
  UPDATE users SET email_addr = NULL, phone_e164 = NULL, display_label = NULL, user_state_code = 'inactive',
    erased_utc = now()
  WHERE user_id = ${userId}::uuid`;

/** @param tenantId of which the account is, the user's own or another. */
export const linkGoogle = ({ userId }: Owner, tenantId: string, subject: string) => sql.unsafe`
  INSERT INTO user_identities (ident_id, user_id, ident_provider_code, provider_subject_key)
  VALUES (gen_random_uuid(), ${userId}::uuid, 'google', ${`${tenantId}:${subject}`})`;
