import { createLog } from "../log.ts";
import { openDatabase } from "../db/pool.ts";
import { peppersOf } from "../dev-keys.ts";
import { bootstrapRoot, recoverRoot } from "../service-identity/bootstrap.ts";
import { createCredentialHasher } from "../service-identity/credentials.ts";
import { createMacs } from "../macs.ts";
import { runCommand } from "./run.ts";

/** `npm run bootstrap [-- --recover]`: only the root service's secret on stdout, all else on stderr. */
await runCommand(async (config) => {
  const { url } = config.database;
  if (!url)
    throw new Error("DATABASE_URL is not set; on the embedded database `npm start` makes the root service itself");
  const log = createLog("silent");
  const hasher = createCredentialHasher(createMacs(await peppersOf(config, log)));
  const db = openDatabase({ url, settings: config.database, log });
  try {
    const recover = process.argv.includes("--recover");
    const secret = await (recover ? recoverRoot(db, hasher) : bootstrapRoot(db, hasher));
    if (!secret) {
      throw new Error(
        recover
          ? "there is no root service yet: run `npm run bootstrap`"
          : "the root service exists already; `npm run bootstrap -- --recover` makes it a new secret",
      );
    }
    process.stderr.write(`the root service's ${recover ? "new " : ""}secret, shown this once:\n`);
    process.stdout.write(`${secret}\n`);
  } finally {
    await db.end();
  }
});
