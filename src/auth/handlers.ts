import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { accessTokenHandlers } from "./access-tokens.ts";
import { erasureHandlers } from "./erasure.ts";
import { googleIdentityHandlers } from "./google-identities.ts";
import { googleLoginHandlers } from "./google-logins.ts";
import { identityHandlers } from "./identities.ts";
import { importHandlers } from "./imports.ts";
import { loginHandlers } from "./logins.ts";
import { otpRequestHandlers } from "./otp-requests.ts";
import { otpUseHandlers } from "./otp-uses.ts";
import type { AuthParts } from "./parts.ts";
import { passwordChangeHandlers } from "./password-changes.ts";
import { refreshHandlers } from "./refresh.ts";
import { sessionListHandlers } from "./session-lists.ts";
import { signingKeyHandlers } from "./signing-keys.ts";
import { userListHandlers } from "./user-lists.ts";
import { userProfileHandlers } from "./user-profiles.ts";
import { userStateHandlers } from "./user-states.ts";
import { userHandlers } from "./users.ts";

/** All of AuthService. */
export const authHandlers = (parts: AuthParts): Handlers<typeof AuthService> => ({
  ...accessTokenHandlers(parts),
  ...erasureHandlers(parts),
  ...googleIdentityHandlers(parts),
  ...googleLoginHandlers(parts),
  ...identityHandlers(parts),
  ...importHandlers(parts),
  ...loginHandlers(parts),
  ...otpRequestHandlers(parts),
  ...otpUseHandlers(parts),
  ...passwordChangeHandlers(parts),
  ...refreshHandlers(parts),
  ...sessionListHandlers(parts),
  ...signingKeyHandlers(parts),
  ...userListHandlers(parts),
  ...userProfileHandlers(parts),
  ...userStateHandlers(parts),
  ...userHandlers(parts),
});
