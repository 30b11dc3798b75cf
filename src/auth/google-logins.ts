import { sql } from "slonik";
import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import { changedMeanwhile, transactAgain } from "../db/looks.ts";
import { type Tx, read } from "../db/transact.ts";
import type { AuthService, LoginWithGoogleRequest } from "../gen/auth/v1/auth_pb.ts";
import { oneLine } from "../one-line.ts";
import { activeTenant, selectTenantState } from "../org/tenants.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { type Reason, Refusal, refusal } from "../rpc/refusal.ts";
import { type Client, readClient } from "./clients.ts";
import type { GoogleAccount } from "./google.ts";
import { linkGoogle, selectGoogleIdentity } from "./google-identities.ts";
import { type Origin, originOf } from "./login-networks.ts";
import type { AuthParts } from "./parts.ts";
import { subjectKey } from "./provider-subjects.ts";
import type { Try } from "./throttles.ts";
import { makeUser } from "./user-profiles.ts";
import { type UserRow, lockUser, userMessage, userRow } from "./users.ts";

const NAME_MAX_CHARACTERS = 200;

/** For a link. Whose e-mail changed while this waited is not found. */
const lockUserByEmail = (tenantId: string, email: string) => sql.type(userRow)`
  SELECT u.user_id, u.tenant_id, u.email_addr, u.phone_e164, u.display_label, u.user_state_code, u.email_verified_utc,
    u.phone_verified_utc, u.erased_utc, u.created_utc, u.updated_utc
  FROM users u WHERE u.tenant_id = ${tenantId}::uuid AND u.email_addr = ${email}
  FOR NO KEY UPDATE`;

const knownRow = z.object({ network_is_known: z.boolean() });

/** Whether the account's user logged in from there lately; the key begins with the tenant. */
const selectNetworkIsKnown = (tenantId: string, subject: string, { tags, lifeMs }: Origin) => sql.type(knownRow)`
  SELECT EXISTS (
    SELECT FROM user_identities i JOIN login_networks n ON n.user_id = i.user_id
    WHERE i.ident_provider_code = 'google' AND i.provider_subject_key = ${subjectKey(tenantId, subject)}
      AND n.network_hash = ANY(${sql.array(tags, "text")})
      AND n.last_login_utc > now() - ${lifeMs}::float8 * interval '1 millisecond'
  ) AS network_is_known`;

/** As a display name may be: one line without control characters, at most 200 characters. */
const displayName = (name = ""): string | null => {
  return Array.from(oneLine(name.toWellFormed())).slice(0, NAME_MAX_CHARACTERS).join("").trim() || null;
};

const findLinked = async (tx: Tx, tenantId: string, userId: string, subject: string) => {
  const user = await tx.maybeOne(lockUser(tenantId, userId));
  const linked = await tx.maybeOne(selectGoogleIdentity(tenantId, subject));
  if (linked?.user_id !== userId) return changedMeanwhile;
  return user?.user_state_code === "active" ? { user, created: false } : refusal("INVALID_CREDENTIALS");
};

const link = async (tx: Tx, call: Call, user: UserRow, account: GoogleAccount) => {
  if (user.user_state_code !== "active") return refusal("INVALID_CREDENTIALS");
  if (user.email_verified_utc === null) return refusal("LINK_REQUIRED");
  const linked = await linkGoogle(tx, call, user, account);
  if (!(linked instanceof Refusal)) return { user, created: false };
  // Another account of the user's is no reason to let this one in: an address may have passed to somebody else.
  const taken = await tx.maybeOne(selectGoogleIdentity(user.tenant_id, account.subject));
  return taken ? changedMeanwhile : refusal("INVALID_CREDENTIALS");
};

/** In a savepoint: where somebody else linked the account meanwhile, the user that was just made goes with it. */
const create = async (tx: Tx, call: Call, tenantId: string, email: string, account: GoogleAccount) => {
  try {
    return await tx.transaction(async (savepoint) => {
      const profile = { email, phone: null, display_name: displayName(account.name) };
      const made = { tenantId, userId: uuidv7(), profile, isEmailVerified: true, hash: undefined, method: "google" };
      const user = await makeUser(savepoint, call, made);
      if (!user) return changedMeanwhile;
      const linked = await linkGoogle(savepoint, call, user, account);
      if (linked instanceof Refusal) throw linked;
      return { user, created: true };
    });
  } catch (error) {
    if (error instanceof Refusal && error.reason === "IDENTITY_TAKEN") return changedMeanwhile;
    throw error;
  }
};

/** Who the account is in the tenant, locked: LoginWithGoogle's rules in auth.proto, in their order. */
const look = async (tx: Tx, call: Call, tenantId: string, account: GoogleAccount, mayCreate: boolean) => {
  const known = await tx.maybeOne(selectGoogleIdentity(tenantId, account.subject));
  if (known) return findLinked(tx, tenantId, known.user_id, account.subject);
  const { email, authoritative } = account;
  if (!authoritative || email === undefined) return refusal("INVALID_CREDENTIALS");
  const user = await tx.maybeOne(lockUserByEmail(tenantId, email));
  if (user) return link(tx, call, user, account);
  return mayCreate ? create(tx, call, tenantId, email, account) : refusal("INVALID_CREDENTIALS");
};

/** What a try fails by that was wrong with the account it showed: all else is no fault of who tried. */
const FAILURES: ReadonlySet<Reason> = new Set(["INVALID_CREDENTIALS", "LINK_REQUIRED"]);

const hasFailed = (outcome: PromiseSettledResult<unknown>) =>
  outcome.status === "rejected" && outcome.reason instanceof Refusal && FAILURES.has(outcome.reason.reason);

export const googleLoginHandlers = (parts: AuthParts) => {
  const { db, sessions, throttles, google } = parts;

  const verify = async ({ tenantId, idToken, nonce }: LoginWithGoogleRequest, client: Client, call: Call) => {
    try {
      return await google.verify(call, idToken, nonce);
    } catch (error) {
      if (error instanceof Refusal && error.reason === "ID_TOKEN_INVALID") {
        // It names nobody: only where it comes from can be counted.
        await throttles.count(call, { act: "login", tenantId, identifier: undefined, client, networkIsKnown: false });
      }
      throw error;
    }
  };

  const attemptOf = async (tenantId: string, { subject }: GoogleAccount, client: Client, call: Call): Promise<Try> => {
    const select = selectNetworkIsKnown(tenantId, subject, originOf(parts, tenantId, client));
    const { network_is_known: networkIsKnown } = await read(db, call, (connection) => connection.one(select));
    return { act: "login", tenantId, identifier: `google:${subject}`, client, networkIsKnown };
  };

  const signIn = (request: LoginWithGoogleRequest, account: GoogleAccount, client: Client, call: Call) =>
    transactAgain(db, call, async (tx) => {
      const found = await look(tx, call, request.tenantId, account, request.createUser ?? false);
      if (found === changedMeanwhile || found instanceof Refusal) return found;
      const { tenant_id, user_id } = found.user;
      const session = await sessions.open(tx, call, { tenantId: tenant_id, userId: user_id, client, method: "google" });
      return { ...found, session };
    });

  return {
    async loginWithGoogle(request, call) {
      const { tenantId } = request;
      const client = readClient(request.client);
      activeTenant(tenantId, await read(db, call, (connection) => connection.maybeOne(selectTenantState(tenantId))));
      const account = await verify(request, client, call);
      const attempt = await attemptOf(tenantId, account, client, call);
      const work = () => signIn(request, account, client, call);
      const { user, session, created } = await throttles.during(call, attempt, work, hasFailed);
      return { user: userMessage(user), tokens: await sessions.tokens(session), created };
    },
  } satisfies Partial<Handlers<typeof AuthService>>;
};
