import { readFile } from "node:fs/promises";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import type { Config } from "../config.ts";
import { rootSecretFile } from "../embedded.ts";
import { ServiceIdentityService } from "../gen/service_identity/v1/service_identity_pb.ts";
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
  const host = ["0.0.0.0", "::"].includes(config.grpc.host) ? "127.0.0.1" : config.grpc.host;
  const baseUrl = `${config.tls ? "https" : "http"}://${host}:${config.grpc.port}`;
  const client = createClient(ServiceIdentityService, createGrpcTransport({ baseUrl }));
  const { serviceToken } = await client.authenticateService({ key: "root", secret: await readSecret(config) });
  process.stdout.write(`${serviceToken}\n`);
});
