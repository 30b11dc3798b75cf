/** A key is taken: what an UPDATE, which has no ON CONFLICT, fails with. */
export const UNIQUE_VIOLATION = "23505";

/** A statement names a table that is not there, as before the first migration. */
export const UNDEFINED_TABLE = "42P01";

// Five characters, but not such as EPIPE, which Node's own errors have.
const SQLSTATE = /^(?!E[A-Z]{4}$)[0-9A-Z]{5}$/;

/** The SQLSTATE of a database error, where it has one: slonik's errors have it in their cause. */
export const sqlStateOf = (error: unknown): string | undefined => {
  if (!(error instanceof Error)) return undefined;
  const { code } = error as Error & { code?: unknown };
  return typeof code === "string" && SQLSTATE.test(code) ? code : sqlStateOf(error.cause);
};
