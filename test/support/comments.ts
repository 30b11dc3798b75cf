import { globSync, readFileSync } from "node:fs";
import { REASONS } from "../../src/rpc/refusal.ts";
import { type Rpc, rpcs } from "./rpcs.ts";

const protos = globSync("proto/{auth,org,service_identity}/v1/*.proto")
  .map((file) => readFileSync(file, "utf8"))
  .join("\n");

/** The comment above a declaration, as one line. */
const commentAbove = (declaration: string): string => {
  const [, lines = ""] = new RegExp(`((?: *//.*\n)+) *${declaration}`).exec(protos) ?? [];
  return lines.replaceAll(/\n? *\/\/ ?/g, " ");
};

/** What the protos say of an RPC. */
export const commentOf = ({ name }: Rpc): string => commentAbove(`rpc ${name}\\(`);

const reasonsOf = (rpc: Rpc): ReadonlySet<string> => {
  const said = commentOf(rpc) + commentAbove(`service ${rpc.method.parent.name} \\{`);
  return new Set(said.match(/\b[A-Z][A-Z_]+\b/g));
};

const reasons = new Map(rpcs.map((rpc) => [rpc, reasonsOf(rpc)]));

// What is refused alike before any RPC's handler or beneath it; tests of their own provoke it.
const OF_ALL = ["INVALID_REQUEST", "ACTOR_TOKEN_INVALID", "CONFLICT", "DEADLINE", "DATABASE_UNAVAILABLE", "OVERLOADED"];

/** The reasons that an RPC's comment lists as its own. */
export const errorsOf = (rpc: Rpc): readonly string[] => {
  const [, listed = ""] = commentOf(rpc).split("Errors:");
  const words = new Set(listed.match(/\b[A-Z][A-Z_]+\b/g));
  return [...words].filter((word) => word in REASONS && !OF_ALL.includes(word));
};

/** Whether the protos say, of an RPC or of all of its service, that it can be refused by this reason. */
export const saysReason = (rpc: Rpc, reason: string): boolean => reasons.get(rpc)?.has(reason) ?? false;
