import { ConfigError, parseConfig } from "../../src/config.ts";

/** The key of a pepper, as it stands in the environment. */
export const PEPPER = Buffer.alloc(32, 1).toString("base64");

/** What is wrong with these variables. */
export const faultsOf = (variables: Record<string, string>): readonly string[] => {
  try {
    parseConfig(variables);
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.faults;
    throw error;
  }
};

/** The variables that the faults name. */
export const faultyNames = (variables: Record<string, string>) =>
  faultsOf(variables).map((fault) => fault.split(":", 1)[0]);
