import { readFile } from "node:fs/promises";
import { type Transport, createClient } from "@connectrpc/connect";
import type { Config } from "../config.ts";
import { ServiceIdentityService } from "../gen/service_identity/v1/service_identity_pb.ts";
import { rootSecretFile } from "../root-secret.ts";

const readSecret = async (config: Config): Promise<string> => {
  const file = rootSecretFile(config);
  try {
    return (await readFile(file, "utf8")).trim();
  } catch {
    throw new Error(`${file} cannot be read: run \`npm start\` without DATABASE_URL first, or put root's secret there`);
  }
};

/** A fresh token of root, by the secret that development keeps in a file. */
export const rootToken = async (config: Config, transport: Transport): Promise<string> => {
  const secret = await readSecret(config);
  const services = createClient(ServiceIdentityService, transport);
  return (await services.authenticateService({ key: "root", secret })).serviceToken;
};
