import { startEmbeddedPostgres } from "../../src/db/embedded-postgres.ts";

/** A process that holds an embedded PostgreSQL until it is killed; it tells its parent the URL. */
const { url } = await startEmbeddedPostgres({ dataDir: process.argv[2] ?? "" });
// An embedded PostgreSQL keeps no process alive; listening to the parent does.
process.on("message", () => undefined);
process.send?.(url);
