import { v7 as uuidv7 } from "uuid";
import { recordEvent } from "../audit/record.ts";
import { type Tx, transact } from "../db/transact.ts";
import type { RegisterServiceRequest, ServiceIdentityService } from "../gen/service_identity/v1/service_identity_pb.ts";
import { missingTenant } from "../org/tenants.ts";
import type { Call } from "../rpc/call.ts";
import { ownTenant } from "../rpc/caller.ts";
import type { Handlers } from "../rpc/methods.ts";
import { refusal } from "../rpc/refusal.ts";
import { sameSet } from "../same-set.ts";
import { escalation } from "./escalation.ts";
import type { ServiceIdentityParts } from "./parts.ts";
import { insertPermissions } from "./permissions.ts";
import { createSecret, selectFirstSecret } from "./secrets.ts";
import { type ServiceRow, heldTo, insertService, selectService, serviceEvent, serviceMessage } from "./services.ts";

/** Whether a repeated registration says nothing else than the first: what it leaves out is not compared. */
const isSameContent = (row: ServiceRow, request: RegisterServiceRequest) =>
  row.svc_key === request.key &&
  row.svc_label === request.label &&
  (request.tenantId === undefined || row.tenant_id === request.tenantId.toLowerCase()) &&
  (request.permissions.length === 0 || sameSet(row.perm_keys, request.permissions));

export const registrationHandlers = ({ db, macs }: ServiceIdentityParts) => {
  /** The answer to a registration whose id or key is there already. */
  const registered = async (tx: Tx, call: Call, request: RegisterServiceRequest) => {
    const { serviceId = null, tenantId = null, key } = request;
    const present = serviceId ? await tx.maybeOne(selectService(serviceId, ownTenant(call))) : null;
    // A request that names a tenant is of that one, to which the actor is held already, whoever's the service is.
    if (present && tenantId === null) heldTo(call, present);
    const beyond = present && escalation(call.caller.permissions, [], present.perm_keys);
    if (beyond) return beyond;
    if (present && isSameContent(present, request)) {
      // A service that was loaded in bulk may have none.
      const first = await tx.maybeOne(selectFirstSecret(present.svc_id));
      return { service: present, secretId: first?.secret_id ?? "", secret: "" };
    }
    const idTaken = serviceId && (await tx.maybeOne(selectService(serviceId, null)));
    return idTaken ? refusal("SERVICE_ID_TAKEN", { service_id: serviceId }) : refusal("SERVICE_KEY_TAKEN", { key });
  };

  return {
    async registerService(request, call) {
      const { serviceId = uuidv7(), tenantId = null, key, label, permissions } = request;
      const beyond = escalation(call.caller.permissions, permissions);
      if (beyond) throw beyond;
      const { service, secretId, secret } = await transact(db, call, async (tx) => {
        const missing = tenantId && (await missingTenant(tx, tenantId));
        if (missing) return missing;
        const created = await tx.maybeOne(insertService(serviceId, tenantId, key, label));
        if (!created) return registered(tx, call, request);
        await tx.any(insertPermissions(serviceId, permissions));
        const made = await createSecret(tx, macs, serviceId);
        const row = await tx.one(selectService(serviceId, ownTenant(call)));
        const payload = { key, permissions: row.perm_keys, secret_id: made.secretId };
        await recordEvent(tx, call, { ...serviceEvent("service.register", row), payload });
        return { service: row, ...made };
      });
      return { service: serviceMessage(service), secretId, secret };
    },
  } satisfies Partial<Handlers<typeof ServiceIdentityService>>;
};
