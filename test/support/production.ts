import { inject } from "vitest";
import { SECRET_PEPPERS } from "./root.ts";

/** What production must be told, for a server that a test starts in its own process: no provider sends anything. */
export const productionEnv = () => ({
  NODE_ENV: "production",
  DATABASE_URL: "postgres://localhost/unused",
  SECRET_PEPPERS,
  JWT_KEYS_FILE: inject("jwtKeysFile"),
  SHUTDOWN_DELAY: "0s",
});
