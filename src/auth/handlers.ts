import type { AuthService } from "../gen/auth/v1/auth_pb.ts";
import type { Handlers } from "../rpc/methods.ts";
import { identityHandlers } from "./identities.ts";
import { accessTokenHandlers } from "./access-tokens.ts";
import { importHandlers } from "./imports.ts";
import type { AuthParts } from "./parts.ts";

import { refreshHandlers } from "./refresh.ts";
import { sessionListHandlers } from "./session-lists.ts";
import { signingKeyHandlers } from "./signing-keys.ts";

const notBuilt = () => Promise.reject(new Error("not built"));

/** All of AuthService. */
export const authHandlers = (parts: AuthParts): Handlers<typeof AuthService> => ({
  ...identityHandlers(parts),
  ...importHandlers(parts),
  createUser: notBuilt,
  getUser: notBuilt,
  batchGetUsers: notBuilt,
  listUsers: notBuilt,
  updateUser: notBuilt,
  deactivateUser: notBuilt,
  activateUser: notBuilt,
  eraseUser: notBuilt,

  setPassword: notBuilt,
  changePassword: notBuilt,
  loginWithPassword: notBuilt,

  linkGoogleIdentity: notBuilt,
  loginWithGoogle: notBuilt,

  requestOtp: notBuilt,
  loginWithOtp: notBuilt,
  verifyContact: notBuilt,
  resetPassword: notBuilt,

  ...refreshHandlers(parts),
  ...sessionListHandlers(parts),
  ...accessTokenHandlers(parts),
  ...signingKeyHandlers(parts),
});
