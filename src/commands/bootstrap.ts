import { fstatSync, statSync, writeFileSync } from "node:fs";
import { devNull } from "node:os";
import type { Config } from "../config.ts";
import { createLog } from "../log.ts";
import { verifiedTls } from "../db/connections.ts";
import { openDatabase } from "../db/pool.ts";
import { peppersOf } from "../dev-keys.ts";
import { bootstrapRoot, recoverRoot } from "../service-identity/bootstrap.ts";
import { createMacs } from "../macs.ts";
import { runCommand } from "./run.ts";

// A stdout that is closed Node replaces by the null device, which takes everything.
const leadsNowhere = (fd: number) => fstatSync(fd).rdev === statSync(devNull).rdev;

/** At once, and not by a stream, which passes over a reader who has left. */
const print = (secret: string) => {
  try {
    writeFileSync(process.stdout.fd, `${secret}\n`);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new Error(
      `stdout cannot be written to: ${code}; the secret is lost, \`npm run bootstrap -- --recover\` makes another`,
      { cause: error },
    );
  }
};

const run = async (config: Config, recover: boolean) => {
  const { url } = config.database;
  if (!url)
    throw new Error("DATABASE_URL is not set; on the embedded database `npm start` makes the root service itself");
  if (leadsNowhere(process.stdout.fd)) throw new Error("stdout is closed, or leads nowhere: the secret would be lost");
  // What opens connections would take a file of no use for a database out of reach.
  verifiedTls(config.database);
  const log = createLog(config.logLevel, process.stderr);
  const macs = createMacs(await peppersOf(config, log));
  const db = openDatabase({ url, settings: config.database, log });
  try {
    const secret = await (recover ? recoverRoot(db, macs) : bootstrapRoot(db, macs));
    if (!secret) {
      throw new Error(
        recover
          ? "there is no root service yet: run `npm run bootstrap`"
          : "the root service exists already; `npm run bootstrap -- --recover` makes it a new secret",
      );
    }
    process.stderr.write(`the root service's ${recover ? "new " : ""}secret, shown this once:\n`);
    print(secret);
  } finally {
    await db.end();
  }
};

/** `npm run bootstrap [-- --recover]`: only the root service's secret on stdout, all else on stderr. */
await runCommand((config, { values }) => run(config, values.recover === true), {
  options: { recover: { type: "boolean" } },
});
