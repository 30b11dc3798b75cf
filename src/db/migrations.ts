import { readdirSync } from "node:fs";

const FOLDER = new URL("../../migrations/committed/", import.meta.url);
let files: readonly string[] | undefined;

/** The files of the committed migrations in their order, read once. */
export const committedMigrations = (): readonly string[] =>
  (files ??= readdirSync(FOLDER)
    .filter((file) => /^\d{6}.*\.sql$/.test(file))
    .sort());

/** The last of graphile-worker's own migrations in the version that we use; a test compares it with what that installs. */
export const QUEUE_STEP = 20;

/**
 * The files that are not applied yet.
 *
 * @param applied `filename` of `graphile_migrate.migrations`, which leaves the message out: `000001.sql`.
 */
export const pendingMigrations = (applied: readonly string[]): readonly string[] => {
  const done = new Set(applied);
  return committedMigrations().filter((file) => !done.has(`${file.slice(0, 6)}.sql`));
};
