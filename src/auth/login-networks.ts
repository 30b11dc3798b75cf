import type { Macs } from "../macs.ts";

// A request may name its tenant in upper case.
const text = (tenantId: string, network: string) => `${tenantId.toLowerCase()}:${network}`;

/** How a network is stored: an address is personal data, so only its keyed hash is, another one in each tenant. */
export const networkTag = (macs: Macs, tenantId: string, network: string): string =>
  macs.tag("network", text(tenantId, network));

/** How it may have been stored, under any pepper. */
export const networkTags = (macs: Macs, tenantId: string, network: string): readonly string[] =>
  macs.tags("network", text(tenantId, network));
