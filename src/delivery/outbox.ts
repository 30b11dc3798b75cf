import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { writeWhole } from "../whole-file.ts";
import { NotSent, type Send } from "./message.ts";

/** Writes each message as a JSON file into a folder: for development, where no provider is configured. */
export const createOutbox =
  (dir: string): Send =>
  async ({ otpId, channel, purpose, to, subject, text, html, short }) => {
    const isEmail = channel === "email";
    const content = { channel, purpose, to, ...(isEmail ? { subject, text, html } : { text: short }) };
    const time = new Date().toISOString().replaceAll(":", "-");
    const file = `${time}-${otpId}.json`;
    try {
      await mkdir(dir, { recursive: true, mode: 0o700 });
      await writeWhole(join(dir, file), `${JSON.stringify(content, undefined, 2)}\n`);
    } catch (error) {
      throw new NotSent(`outbox ${(error as NodeJS.ErrnoException).code}`, false);
    }
  };
