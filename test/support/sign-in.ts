import { randomUUID } from "node:crypto";
import { sql } from "slonik";
import { createAccessTokens } from "../../src/auth/access-tokens.ts";
import { readClient } from "../../src/auth/clients.ts";
import { type OpenedSession, type SignIn, createSessions } from "../../src/auth/sessions.ts";
import { watchSigningKeys } from "../../src/auth/signing-keys.ts";
import type { Pepper } from "../../src/config-values.ts";
import { openDatabase } from "../../src/db/pool.ts";
import { transact } from "../../src/db/transact.ts";
import { createLog } from "../../src/log.ts";
import { createMacs } from "../../src/macs.ts";
import { Call } from "../../src/rpc/call.ts";
import { oncePerFile, onFileFinished } from "./per-file.ts";
import { PEPPERS } from "./root.ts";
import { type TestService, jwtKeysFile } from "./service.ts";

/** Who signed in, and what the client got. */
export interface SignedIn {
  readonly tenantId: string;
  readonly userId: string;
  readonly sessionId: string;
  readonly accessToken: string;
  readonly refreshToken: string;
}

interface SignInOptions {
  readonly tenantId?: string;
  /** One of this tenant that exists; else a new one signs in. */
  readonly userId?: string;
  readonly client?: { readonly userAgent?: string; readonly ip?: string };
  readonly method?: SignIn["method"];
}

/** Adds an active user without any identity. */
export const plantUser = async ({ pool }: TestService, tenantId: string): Promise<string> => {
  const userId = randomUUID();
  await pool.query(sql.unsafe`
    INSERT INTO users (user_id, tenant_id, email_addr, user_state_code)
    VALUES (${userId}::uuid, ${tenantId}::uuid, ${`${userId}@example.com`}, 'active')`);
  return userId;
};

const openSignIn = async (service: TestService, peppers: readonly Pepper[]) => {
  const log = createLog("silent");
  const { config } = service;
  const db = openDatabase({ url: service.databaseUrl, settings: config.database, log });
  const keys = await watchSigningKeys({ file: jwtKeysFile(config), pollMs: config.accessTokens.pollMs, log });
  onFileFinished(async () => {
    keys.close();
    await db.end();
  });
  const accessTokens = createAccessTokens({ db, keys, config: config.accessTokens });
  const sessions = createSessions({ macs: createMacs(peppers), accessTokens, config: config.sessions });

  const open = async (signIn: SignIn): Promise<OpenedSession> => {
    const call = new Call(randomUUID(), 30_000);
    try {
      return await transact(db, call, (tx) => sessions.open(tx, call, signIn));
    } finally {
      call.close();
    }
  };

  return async (options: SignInOptions = {}): Promise<SignedIn> => {
    const tenantId = options.tenantId ?? (await service.addTenant());
    const userId = options.userId ?? (await plantUser(service, tenantId));
    const client = readClient({ $typeName: "auth.v1.ClientInfo", ...options.client });
    const session = await open({ tenantId, userId, client, method: options.method ?? "password" });
    const { accessToken = "" } = await sessions.tokens(session);
    return { tenantId, userId, sessionId: session.sessionId, accessToken, refreshToken: session.refreshToken };
  };
};

const shared = oncePerFile((service: TestService) => openSignIn(service, PEPPERS));

/** Signs users in past every proof: the session is opened as a login opens it. */
export const signInBy = (service: TestService, peppers?: readonly Pepper[]) =>
  peppers ? openSignIn(service, peppers) : shared(service);
