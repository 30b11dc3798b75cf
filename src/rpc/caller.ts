import type { ServiceToken, ServiceTokens } from "../service-identity/service-tokens.ts";
import type { Actor, Call } from "./call.ts";
import { refusal } from "./refusal.ts";

/** The calling service, as its token proved it. */
export type Caller = ServiceToken;

/** Reads a request header by its lower-case name. */
export type HeaderReader = (name: string) => string | undefined;

/** Proves an `x-actor-token`: the user it speaks for, or undefined for one that is not good now. */
export type ActorVerifier = (token: string, call: Call) => Promise<Actor | undefined>;

const TOKEN_MAX = 4_096;

const bearerToken = (header: string | undefined) => {
  if (header === undefined || header.length > TOKEN_MAX) return undefined;
  return /^Bearer +([^\s]+)$/i.exec(header)?.[1];
};

const admitted = (caller: Caller | undefined): Caller => {
  if (!caller) throw refusal("CALLER_TOKEN_INVALID");
  if (caller.suspended) throw refusal("TENANT_SUSPENDED", { tenant_id: caller.tenantId ?? "" });
  return caller;
};

/**
 * The service behind `authorization: Bearer <service token>`; at once where the token is remembered.
 * @throws CALLER_TOKEN_INVALID or TENANT_SUSPENDED
 */
export const authenticate = (tokens: ServiceTokens, header: HeaderReader): Caller | Promise<Caller> => {
  const token = bearerToken(header("authorization"));
  const caller = token === undefined ? undefined : tokens.verify(token);
  return caller instanceof Promise ? caller.then(admitted) : admitted(caller);
};

/**
 * The user behind an `x-actor-token`: one that is not good is refused, never ignored.
 * @throws ACTOR_TOKEN_INVALID
 */
export const actorOf = async (verify: ActorVerifier, token: string, call: Call): Promise<Actor> => {
  const actor = token.length > TOKEN_MAX ? undefined : await verify(token, call);
  if (!actor) throw refusal("ACTOR_TOKEN_INVALID");
  return actor;
};

/**
 * Holds a tenant's service to its tenant, and an actor to the request's.
 * @param tenantId what the request names, or its thing's: "" where it could and does not, undefined where its message has
 * no such field, or its thing has no tenant.
 * @throws TENANT_MISMATCH or ACTOR_TOKEN_INVALID
 */
export const checkTenant = (caller: Caller, actor: Actor | undefined, tenantId: string | undefined): void => {
  const named = tenantId?.toLowerCase();
  if (named !== undefined && caller.tenantId !== undefined && named !== caller.tenantId) {
    throw refusal("TENANT_MISMATCH");
  }
  // Where neither says a tenant it is the thing's, to which whoever reads the thing holds the actor.
  const actsIn = named || caller.tenantId;
  if (actor && actsIn !== undefined && actsIn !== actor.tenantId) throw refusal("ACTOR_TOKEN_INVALID");
};

/** The tenant beyond which the caller sees nothing, for a statement; null where it sees all. */
export const ownTenant = ({ caller }: Call): string | null => caller.tenantId ?? null;

/** Refuses what only a service without tenant may do. */
export const requireTenantless = ({ caller }: Call): void => {
  if (caller.tenantId !== undefined) throw refusal("TENANT_MISMATCH");
};
