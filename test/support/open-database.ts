import { onTestFinished } from "vitest";
import { parseConfig } from "../../src/config.ts";
import { type Database, openDatabase } from "../../src/db/pool.ts";
import { createLog } from "../../src/log.ts";
import { type Reason, Refusal } from "../../src/rpc/refusal.ts";
import { type Waiting, waitingUntil } from "../../src/rpc/call.ts";

/** The database as the service opens it, by the variables of its environment; ended with the test. */
export const openFor = (url: string, env: Readonly<Record<string, string>> = {}): Database => {
  const db = openDatabase({ url, settings: parseConfig(env).database, log: createLog("silent") });
  onTestFinished(() => db.end());
  return db;
};

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
