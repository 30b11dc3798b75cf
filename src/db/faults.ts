import { DatabaseError } from "pg";
import {
  BackendTerminatedError,
  BackendTerminatedUnexpectedlyError,
  ConnectionError,
  DataIntegrityError,
  SchemaValidationError,
  UnexpectedStateError,
} from "slonik";
import { ConfigError } from "../config.ts";
import { Refusal } from "../rpc/refusal.ts";
import { sqlStateOf } from "./sql-state.ts";

/** A database that took a statement and has been silent since. */
export class DatabaseSilent extends Error {
  override readonly name = "DatabaseSilent";
}

/** Ends work for which nobody waits any more. */
export class Abandoned extends Error {
  override readonly name = "Abandoned";
}

const OUT_OF_REACH = [
  // Of a file that was there at the start, and is read again for new connections.
  ConfigError,
  ConnectionError,
  BackendTerminatedError,
  BackendTerminatedUnexpectedlyError,
  UnexpectedStateError,
];
/** After which no statement is under way. */
const HARMLESS = [Refusal, Abandoned, DataIntegrityError, SchemaValidationError];
// Connection, resources, operator, system; 25006 as below, 25P03 is an ended idle transaction, 55P03 a lock that was waited
// for as long as the database or the role has it in its `lock_timeout`.
const OUT_OF_REACH_STATES = /^(08|53|57|58|25006|25P03|55P03)/;
const OUT_OF_REACH_ERRNO = /^E(CONNREFUSED|CONNRESET|PIPE|TIMEDOUT|HOSTUNREACH|NETUNREACH|AI_AGAIN|NOTFOUND)$/;
// pg and slonik say these in words alone.
const OUT_OF_REACH_WORDS = /^(Client (is|was|has)|Connection terminated|Connection pool|timeout expired)/i;

/** Transaction rollback: serialization failure or deadlock, to be tried again. */
export const isConflict = (error: unknown): boolean => sqlStateOf(error)?.startsWith("40") ?? false;

/** What was the primary takes no writes any more: it has become a replica, and the name leads elsewhere, or soon will. */
export const isReadOnly = (error: unknown): boolean => sqlStateOf(error) === "25006";

/**
 * A prepared statement whose columns a migration has changed, or which the server does not know, or knows from somebody
 * else: it fails for as long as its connection lives.
 */
export const isUnusableStatement = (error: unknown): boolean =>
  error instanceof DatabaseError &&
  (error.routine === "RevalidateCachedQuery" || error.code === "26000" || error.code === "42P05");

/** A fault of the statement alone, after which the connection is as good as before; all else may have broken it. */
export const sparesConnection = (error: unknown): boolean => {
  if (HARMLESS.some((type) => error instanceof type)) return true;
  // Broken off by the driver, whatever the fault was that it did so for.
  if (error instanceof BackendTerminatedError) return false;
  const state = sqlStateOf(error);
  return state !== undefined && !/^(08|57P|58|XX|25P03)/.test(state);
};

/** What a caller is told of a database error; what it should not be told stays an error, which is INTERNAL. */
export const asRefusal = (error: unknown): unknown => {
  if (error instanceof Refusal || !(error instanceof Error)) return error;
  if (isConflict(error)) return new Refusal("CONFLICT", {}, { cause: error });
  const { code } = error as NodeJS.ErrnoException;
  const outOfReach =
    OUT_OF_REACH.some((type) => error instanceof type) ||
    OUT_OF_REACH_STATES.test(sqlStateOf(error) ?? "") ||
    OUT_OF_REACH_ERRNO.test(code ?? "") ||
    OUT_OF_REACH_WORDS.test(error.message);
  return outOfReach ? new Refusal("DATABASE_UNAVAILABLE", {}, { cause: error }) : error;
};
