import { expect, test } from "vitest";
import { commentOf } from "../support/comments.ts";
import { catalogue, rpcs } from "../support/rpcs.ts";

/** Those that a service can be given, apart from wildcards: a new one is a change of the contract. */
const PERMISSIONS = [
  ...["auth.login", "auth.session.read", "auth.session.write", "auth.token.verify"],
  ...["auth.user.import", "auth.user.read", "auth.user.write"],
  ...["org.access.check", "org.assignment.read", "org.assignment.write", "org.audit.read"],
  ...["org.invitation.accept", "org.invitation.read", "org.invitation.write", "org.node.read", "org.node.write"],
  ...["org.role.read", "org.role.write", "org.tenant.read", "org.tenant.write"],
  ...["org.visibility.read", "org.visibility.write", "service.read", "service.verify", "service.write"],
];

test("no permission is asked for but those of the contract, and each of them by some RPC", () => {
  expect(catalogue.toSorted()).toEqual(PERMISSIONS);
});

test.each(rpcs)("$name's comment says who may call it", (rpc) => {
  const { rule } = rpc;
  const said = {
    permission: `Permission: \`${String(rule.value)}\``,
    anonymous: "Anonymous.",
    authenticated: "Any caller",
  };
  expect(commentOf(rpc)).toContain(said[rule.case ?? "anonymous"]);
});
