import { DecisionReason } from "../gen/org/v1/org_pb.ts";

/** Why a decision is as it is, in the order in which reasons are looked for; only the last is a yes. */
export const DECISION_CODES = [
  "UNKNOWN_TENANT",
  "TENANT_SUSPENDED",
  "UNKNOWN_USER",
  "USER_INACTIVE",
  "UNKNOWN_NODE",
  "NODE_INACTIVE",
  "UNKNOWN_CAPABILITY",
  "NO_GRANT",
  "GRANTED",
] as const;
export type DecisionCode = (typeof DECISION_CODES)[number];

export const decisionMessage = (code: DecisionCode) => ({
  allowed: code === "GRANTED",
  reason: DecisionReason[code],
});
