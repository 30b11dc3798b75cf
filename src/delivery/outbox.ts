import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Send } from "./message.ts";

/** Writes each message as a JSON file into a folder: for development, where no provider is configured. */
export const createOutbox =
  (dir: string): Send =>
  async ({ otpId, channel, purpose, to, subject, text, html, short }) => {
    const isEmail = channel === "email";
    const content = { channel, purpose, to, ...(isEmail ? { subject, text, html } : { text: short }) };
    const time = new Date().toISOString().replaceAll(":", "-");
    const file = `${time}-${otpId}.json`;
    const unfinished = join(dir, `.${file}`);
    await mkdir(dir, { recursive: true, mode: 0o700 });
    try {
      await writeFile(unfinished, `${JSON.stringify(content, undefined, 2)}\n`, { mode: 0o600 });
      await rename(unfinished, join(dir, file));
    } catch (error) {
      // What a full disk took of it: the message is tried again under another name.
      await rm(unfinished, { force: true }).catch(() => undefined);
      throw error;
    }
  };
