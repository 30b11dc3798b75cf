import { recordEvent } from "../audit/record.ts";
import { transact } from "../db/transact.ts";
import type { ServiceIdentityService } from "../gen/service_identity/v1/service_identity_pb.ts";
import type { Call } from "../rpc/call.ts";
import type { Handlers } from "../rpc/methods.ts";
import { Refusal, refusal } from "../rpc/refusal.ts";
import type { ServiceIdentityParts } from "./parts.ts";
import { isLastRoot, lockRoots } from "./roots.ts";
import { endServiceSessions } from "./service-sessions.ts";
import { type ServiceRow, lockTarget, serviceEvent, serviceMessage, updateServiceState } from "./services.ts";

export const serviceStateHandlers = ({ db, tokens }: ServiceIdentityParts) => {
  const setState = async (serviceId: string, state: ServiceRow["svc_state_code"], call: Call) => {
    const service = await transact(
      db,
      call,
      async (tx) => {
        if (state === "disabled") await lockRoots(tx);
        const target = await lockTarget(tx, call, serviceId);
        if (target instanceof Refusal || target.svc_state_code === state) return target;
        if (state === "disabled" && (await isLastRoot(tx, serviceId))) return refusal("LAST_ROOT_SERVICE");
        await tx.one(updateServiceState(serviceId, state));
        if (state === "disabled") await endServiceSessions(tx, serviceId);
        await recordEvent(tx, call, serviceEvent(state === "disabled" ? "service.disable" : "service.enable", target));
        return { ...target, svc_state_code: state };
      },
      { settled: tokens.forget },
    );
    return { service: serviceMessage(service) };
  };

  return {
    disableService: ({ serviceId }, call) => setState(serviceId, "disabled", call),
    enableService: ({ serviceId }, call) => setState(serviceId, "active", call),
  } satisfies Partial<Handlers<typeof ServiceIdentityService>>;
};
