import { isIP } from "node:net";
import ipaddr from "ipaddr.js";
import type { ClientInfo } from "../gen/auth/v1/auth_pb.ts";
import { invalid } from "../rpc/refusal.ts";

/** The end user's device, as the calling service saw it. */
export interface Client {
  readonly userAgent: string | null;
  /** In its shortest form; an IPv4 address in IPv6 is the IPv4 address. */
  readonly ip: string | null;
  /** The network that one person may have all of: an IPv4 /24 or an IPv6 /64. */
  readonly network: string | undefined;
}

const networkOf = (address: ipaddr.IPv4 | ipaddr.IPv6): string =>
  address.kind() === "ipv4"
    ? `${ipaddr.IPv4.networkAddressFromCIDR(`${address.toString()}/24`).toString()}/24`
    : `${ipaddr.IPv6.networkAddressFromCIDR(`${address.toString()}/64`).toString()}/64`;

/**
 * Reads who a request is made for.
 * @throws INVALID_REQUEST where `client.ip` is no address.
 */
export const readClient = (client: ClientInfo | undefined): Client => {
  const userAgent = client?.userAgent || null;
  if (!client?.ip) return { userAgent, ip: null, network: undefined };
  // Stricter than ipaddr.js, which takes `127.1` and zones.
  if (isIP(client.ip) === 0 || client.ip.includes("%")) {
    throw invalid({ field: "client.ip", description: "must be an IPv4 or IPv6 address" });
  }
  const address = ipaddr.process(client.ip);
  return { userAgent, ip: address.toString(), network: networkOf(address) };
};
