import { type Refusal, refusal } from "../rpc/refusal.ts";
import { covers } from "./permission-sets.ts";

/**
 * What refuses to hand out, or to take over, what is not held.
 * @param named what the request itself names, of which the refusal says what is lacking.
 * @param present what a service has, which is for those to know who may read it.
 */
export const escalation = (
  held: readonly string[],
  named: readonly string[],
  present: readonly string[] = [],
): Refusal | undefined => {
  const isLacking = (permission: string) => !covers(held, permission);
  const permission = named.find(isLacking);
  if (permission !== undefined) return refusal("PERMISSION_ESCALATION", { permission });
  return present.some(isLacking) ? refusal("PERMISSION_ESCALATION") : undefined;
};
