import { join } from "node:path";
import type { Config } from "./config.ts";
import { writeWhole } from "./whole-file.ts";

/** Where the root service's secret stands in development, mode 0600. */
export const rootSecretFile = ({ dataDir }: Config): string => join(dataDir, "root.secret");

export const keepRootSecret = async (file: string, secret: string): Promise<void> => {
  try {
    await writeWhole(file, `${secret}\n`);
  } catch (error) {
    throw new Error(`${file} cannot be written: ${(error as NodeJS.ErrnoException).code}`, { cause: error });
  }
};
