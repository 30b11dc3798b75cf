import { readFile } from "node:fs/promises";
import { createClient } from "@connectrpc/connect";
import type { Config } from "../config.ts";
import { rootSecretFile } from "../embedded.ts";
import { ServiceIdentityService } from "../gen/service_identity/v1/service_identity_pb.ts";
import { callOwnServer } from "./own-server.ts";
import { runCommand } from "./run.ts";

const readSecret = async (config: Config): Promise<string> => {
  const file = rootSecretFile(config);
  try {
    return (await readFile(file, "utf8")).trim();
  } catch {
    throw new Error(`${file} cannot be read: run \`npm start\` without DATABASE_URL first, or put root's secret there`);
  }
};

/** `npm run --silent token`: a fresh service token of root on stdout, for trying calls by hand in development. */
await runCommand(async (config) => {
  if (config.production) throw new Error("development only: in production a service calls AuthenticateService");
  const secret = await readSecret(config);
  const { serviceToken } = await callOwnServer(config, (transport) =>
    createClient(ServiceIdentityService, transport).authenticateService({ key: "root", secret }),
  );
  process.stdout.write(`${serviceToken}\n`);
});
