import type { Macs } from "../macs.ts";

const FORMAT = /^inv_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_[A-Za-z0-9_-]{43}$/;

/** The invitation that a token names, of which nothing is proven yet; undefined where it is none by its form. */
export const tokenInvitationId = (token: string): string | undefined => FORMAT.exec(token)?.[1];

const tokenOf = (invitationId: string, mac: Buffer) => `inv_${invitationId}_${mac.toString("base64url")}`;

/** A new invitation's token, and what is stored of it: under which pepper it was derived, and a keyed hash. */
export const newToken = (macs: Macs, invitationId: string): { readonly token: string; readonly hash: string } => {
  const token = tokenOf(invitationId, macs.newest("invitation", invitationId));
  return { token, hash: macs.tag("invitation-hash", token) };
};

/** The token of an invitation, again; undefined where its pepper is no longer configured. */
export const deriveToken = (macs: Macs, invitationId: string, tokenHashText: string): string | undefined => {
  const mac = macs.underPepperOf(tokenHashText, "invitation", invitationId);
  return mac && tokenOf(invitationId, mac);
};

/** Constant in time. */
export const isGenuineToken = (macs: Macs, token: string, tokenHashText: string): boolean =>
  macs.matches("invitation-hash", token, tokenHashText);
