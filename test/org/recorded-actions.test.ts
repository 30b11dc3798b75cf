import { OrgService } from "../../src/gen/org/v1/org_pb.ts";
import { testMutations } from "../support/mutations.ts";
import { assignmentMutations, grantMutations, invitationMutations } from "../support/post-mutations.ts";
import { capabilityMutations, roleMutations } from "../support/role-mutations.ts";
import { startService } from "../support/service.ts";
import { nodeMutations, tenantMutations } from "../support/tree-mutations.ts";

testMutations({
  service: OrgService,
  async plant(transport, beside) {
    const server = await startService(transport);
    return { server, tenantId: beside?.tenantId ?? (await server.addTenant()) };
  },
  mutations: [
    ...tenantMutations,
    ...nodeMutations,
    ...capabilityMutations,
    ...roleMutations,
    ...assignmentMutations,
    ...grantMutations,
    ...invitationMutations,
  ],
});
