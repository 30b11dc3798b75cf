import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * How files are opened that the configuration names: a pipe that nobody writes to, for which the opening would wait without
 * an end, is empty.
 */
export const WITHOUT_WAITING = constants.O_RDONLY | constants.O_NONBLOCK;

/** How long a pipe's writer may take, which fetches a secret from elsewhere. */
const WRITER_MS = 10_000;
const PAUSE_MS = 20;

/** Reads a file that the configuration names, or a pipe such as bash makes of `<(…)`, for whose writer it waits a while. */
export const readConfigured = async (path: string): Promise<Buffer> => {
  await using file = await open(path, WITHOUT_WAITING);
  const parts: Buffer[] = [];
  for (const until = performance.now() + WRITER_MS; ;) {
    try {
      const { bytesRead, buffer } = await file.read();
      if (bytesRead === 0) return Buffer.concat(parts);
      parts.push(buffer.subarray(0, bytesRead));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      if (performance.now() > until) throw Object.assign(new Error("a silent pipe"), { code: "ETIMEDOUT" });
      await sleep(PAUSE_MS);
    }
  }
};
