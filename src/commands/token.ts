import { callOwnServer } from "./own-server.ts";
import { rootToken } from "./root-token.ts";
import { runCommand } from "./run.ts";

/** `npm run --silent token`: a fresh service token of root on stdout, for trying calls by hand in development. */
await runCommand(async (config) => {
  if (config.production) throw new Error("development only: in production a service calls AuthenticateService");
  const token = await callOwnServer(config, (transport) => rootToken(config, transport));
  process.stdout.write(`${token}\n`);
});
