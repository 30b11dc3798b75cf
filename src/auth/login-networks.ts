import type { Macs } from "../macs.ts";
import type { Client } from "./clients.ts";
import type { AuthParts } from "./parts.ts";

// A request may name its tenant in upper case.
const text = (tenantId: string, network: string) => `${tenantId.toLowerCase()}:${network}`;

/** How a network is stored: an address is personal data, so only its keyed hash is, another one in each tenant. */
export const networkTag = (macs: Macs, tenantId: string, network: string): string =>
  macs.tag("network", text(tenantId, network));

/** Where a call comes from: how its network may have been stored, and for how long a login from there counts. */
export interface Origin {
  /** Under every pepper; none where the network is not known. */
  readonly tags: readonly string[];
  readonly lifeMs: number;
}

export const originOf = ({ macs, config }: AuthParts, tenantId: string, { network }: Client): Origin => ({
  tags: network === undefined ? [] : macs.tags("network", text(tenantId, network)),
  lifeMs: config.sessions.knownNetworkMs,
});
