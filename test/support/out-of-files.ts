import { closeSync, openSync } from "node:fs";
import { checkNewPassword } from "../../src/auth/password-rules.ts";
import { createPasswords } from "../../src/auth/passwords.ts";
import { createEmailSender } from "../../src/delivery/email.ts";
import type { Message } from "../../src/delivery/message.ts";
import { detached } from "../../src/rpc/call.ts";

// Does for the first time what loads modules then, without a file descriptor to be had, and once more when there are some.
const passwords = createPasswords({ memoryKib: 8, passes: 1, parallelism: 1, threads: 1, queueMax: 1 });
const sendMail = createEmailSender({ url: "smtp://127.0.0.1:1", from: { name: "", address: "a@example.org" } }, 5_000);
const message: Message = {
  otpId: "1",
  channel: "email",
  purpose: "login",
  to: "b@example.org",
  subject: "s",
  text: "t",
  html: "h",
  short: "s",
};

const ends = async (work: Promise<unknown>) => {
  try {
    return String(await work);
  } catch (error) {
    return (error as Error).message;
  }
};
const tries = async () => ({
  hash: await ends(passwords.hash(detached(), "correct horse")),
  rule: await ends(checkNewPassword("1234567890", "password", [])),
  mail: await ends(sendMail(message, new AbortController().signal)),
});

const held: number[] = [];
try {
  for (;;) held.push(openSync("/dev/null", "r"));
} catch {
  // There are no more.
}
const without = await tries();
for (const file of held) closeSync(file);
const again = await tries();
process.stdout.write(JSON.stringify({ without, again }));
await passwords.close();
