import type { AuditHead } from "./audit/head.ts";
import { createAccessTokens } from "./auth/access-tokens.ts";
import { createGoogle } from "./auth/google.ts";
import { authHandlers } from "./auth/handlers.ts";
import type { Channel } from "./auth/otp-codes.ts";
import type { AuthParts } from "./auth/parts.ts";
import { createPasswords } from "./auth/passwords.ts";
import { createSessions } from "./auth/sessions.ts";
import type { SigningKeys } from "./auth/signing-keys.ts";
import { createThrottles } from "./auth/throttles.ts";
import type { Config } from "./config.ts";
import type { Database } from "./db/pool.ts";
import { AuthService } from "./gen/auth/v1/auth_pb.ts";
import { OrgService } from "./gen/org/v1/org_pb.ts";
import { ServiceIdentityService } from "./gen/service_identity/v1/service_identity_pb.ts";
import type { Log } from "./log.ts";
import type { Macs } from "./macs.ts";
import { orgHandlers } from "./org/handlers.ts";
import type { ActorVerifier } from "./rpc/caller.ts";
import { implementation } from "./rpc/methods.ts";
import type { Metrics } from "./rpc/metrics.ts";
import { serviceIdentityHandlers } from "./service-identity/handlers.ts";
import { createServiceTokens } from "./service-identity/service-tokens.ts";

interface ImplementationsOptions {
  readonly config: Config;
  readonly db: Database;
  /** Of few connections that no call waits for. */
  readonly probe: Database;
  readonly macs: Macs;
  readonly keys: SigningKeys;
  readonly auditHead: AuditHead;
  /** Those that something sends on. */
  readonly channels: ReadonlySet<Channel>;
  readonly metrics: Metrics;
  readonly log: Log;
}

/** The three services, and what the pipeline shares with them. */
export const createImplementations = (options: ImplementationsOptions) => {
  const { config, db, probe, macs, keys, auditHead, channels, metrics, log } = options;
  const tokens = createServiceTokens(db, macs);
  const accessTokens = createAccessTokens({ db, keys, config: config.accessTokens });
  const passwords = createPasswords(config.passwords);
  metrics.watchPasswordQueue(passwords.queueLength);
  const auth: AuthParts = {
    db,
    config,
    macs,
    keys,
    accessTokens,
    passwords,
    sessions: createSessions({ macs, accessTokens, config: config.sessions }),
    throttles: createThrottles({ db, macs, config: config.throttles, log, onRefused: metrics.countRefusedTry }),
    google: createGoogle(config.google),
    channels,
  };
  const forgetTokens = tokens.forget;
  const implementations = [
    implementation(AuthService, authHandlers(auth)),
    implementation(OrgService, orgHandlers({ db, probe, config, macs, passwords, auditHead, forgetTokens })),
    implementation(ServiceIdentityService, serviceIdentityHandlers({ db, macs, tokens }, config.serviceTokenTtlMs)),
  ];
  const verifyActor: ActorVerifier = async (token, call) => {
    const verified = await accessTokens.verify(call, token);
    return verified.reason === "OK" ? verified : undefined;
  };
  return { implementations, tokens, verifyActor, passwords };
};
