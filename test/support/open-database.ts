import { sql } from "slonik";
import { onTestFinished } from "vitest";
import { z } from "zod";
import { parseConfig } from "../../src/config.ts";
import { type Database, openDatabase } from "../../src/db/pool.ts";
import { read } from "../../src/db/transact.ts";
import { createLog } from "../../src/log.ts";
import { type Reason, Refusal } from "../../src/rpc/refusal.ts";
import { type Waiting, detached, waitingUntil } from "../../src/rpc/call.ts";

/** The database as the service opens it, by the variables of its environment; ended with the test. */
export const openFor = (url: string, env: Readonly<Record<string, string>> = {}): Database => {
  const db = openDatabase({ url, settings: parseConfig(env).database, log: createLog("silent") });
  onTestFinished(() => db.end());
  return db;
};

export const selectSetting = (name: string) => sql.type(z.object({ value: z.string() }))`
  SELECT current_setting(${name}) AS value`;
const selectPid = sql.type(z.object({ pid: z.number() }))`SELECT pg_backend_pid() AS pid`;

/** What PostgreSQL has set for a connection of it. */
export const settingOf = (db: Database, name: string): Promise<string> =>
  read(db, detached(), (connection) => connection.oneFirst(selectSetting(name)));

/** Which process of PostgreSQL serves a connection of it. */
export const pidOf = (db: Database): Promise<number> =>
  read(db, detached(), (connection) => connection.oneFirst(selectPid));

/** The reason of the refusal that a promise ends with; anything else is thrown on. */
export const reasonOf = async (work: Promise<unknown>): Promise<Reason | "answered"> => {
  try {
    await work;
    return "answered";
  } catch (error) {
    if (error instanceof Refusal) return error.reason;
    throw error;
  }
};

/** A wait that ends with a refusal when told to. */
export const cancellable = (): Waiting & { cancel(): void } => {
  const controller = new AbortController();
  return {
    ...waitingUntil(controller.signal),
    cancel: () => controller.abort(new Refusal("CANCELLED", {})),
  };
};
