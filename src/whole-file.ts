import { rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

/**
 * Writes a file for its owner alone, mode 0600. It appears whole or not at all: where there is no room for it, nothing of it
 * stays.
 */
export const writeWhole = async (file: string, text: string): Promise<void> => {
  const draft = join(dirname(file), `.${basename(file)}`);
  try {
    // What was cut short may stand there, and the mode counts only for a file that is created.
    await rm(draft, { force: true });
    await writeFile(draft, text, { mode: 0o600, flag: "wx" });
    await rename(draft, file);
  } catch (error) {
    await rm(draft, { force: true }).catch(() => undefined);
    throw error;
  }
};
