import { sql } from "slonik";
import { z } from "zod";
import type { Macs } from "../macs.ts";

const text = (tenantId: string, network: string) => `${tenantId}:${network}`;

/** How a network is stored: an address is personal data, so only its keyed hash is, another one in each tenant. */
export const networkTag = (macs: Macs, tenantId: string, network: string): string =>
  macs.tag("network", text(tenantId, network));

/** How it may have been stored, under any pepper. */
export const networkTags = (macs: Macs, tenantId: string, network: string): readonly string[] =>
  macs.tags("network", text(tenantId, network));

/**
 * One row where the user logged in from the network lately. A login is remembered once a day, so one of the day before
 * the bound may count no longer.
 * @param tags the network, by `networkTags`.
 * @param lifeMs for how long a login is remembered: KNOWN_NETWORK_LIFE.
 */
export const selectKnownNetwork = (tenantId: string, userId: string, tags: readonly string[], lifeMs: number) =>
  sql.type(z.object({ user_id: z.string() }))`
  SELECT n.user_id FROM login_networks n
  WHERE n.tenant_id = ${tenantId}::uuid AND n.user_id = ${userId}::uuid
    AND n.network_hash = ANY(${sql.array(tags, "text")})
    AND n.last_login_utc > now() - ${lifeMs}::float8 * interval '1 millisecond'
  LIMIT 1`;
