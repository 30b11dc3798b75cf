import type { ServiceIdentityService } from "../gen/service_identity/v1/service_identity_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import type { ServiceIdentityParts } from "./parts.ts";
import { permissionHandlers } from "./permissions.ts";
import { registrationHandlers } from "./registrations.ts";
import { secretHandlers } from "./secrets.ts";
import { serviceSessionHandlers } from "./service-sessions.ts";
import { serviceStateHandlers } from "./service-states.ts";
import { serviceHandlers } from "./services.ts";
import { signInHandlers } from "./sign-in.ts";

/** All of ServiceIdentityService. @param tokenTtlMs the life of a token whose caller asks for none. */
export const serviceIdentityHandlers = (parts: ServiceIdentityParts, tokenTtlMs: number) =>
  ({
    ...serviceHandlers(parts),
    ...registrationHandlers(parts),
    ...serviceStateHandlers(parts),
    ...secretHandlers(parts),
    ...permissionHandlers(parts),
    ...signInHandlers(parts, tokenTtlMs),
    ...serviceSessionHandlers(parts),
  }) satisfies Handlers<typeof ServiceIdentityService>;
