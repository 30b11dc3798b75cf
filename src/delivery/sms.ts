import type { Config } from "../config.ts";
import { type Message, NotSent, type Send } from "./message.ts";

// What is not the message's fault passes: a key that was just changed, a suspended account, a limit, a time limit.
const PASSING: ReadonlySet<number> = new Set([401, 403, 408, 429]);

type Twilio = NonNullable<Config["delivery"]["twilio"]>;

const whatsApp = (address: string) => (address.startsWith("whatsapp:") ? address : `whatsapp:${address}`);

/** Of a messaging service, whose id begins with MG, or of one number. */
const senderField = (sender: string) => (/^MG[0-9a-f]{32}$/i.test(sender) ? "MessagingServiceSid" : "From");

const formOf = ({ channel, to, short }: Message, { smsFrom = "", whatsAppFrom = "" }: Twilio) => {
  const sender = channel === "sms" ? smsFrom : whatsAppFrom;
  const field = senderField(sender);
  const isWhatsApp = channel === "whatsapp";
  return new URLSearchParams({
    To: isWhatsApp ? whatsApp(to) : to,
    [field]: isWhatsApp && field === "From" ? whatsApp(sender) : sender,
    Body: short,
  });
};

const failureOf = (error: unknown) => new NotSent(`twilio ${error instanceof Error ? error.name : "error"}`, false);

/** Sends SMS and WhatsApp messages by Twilio's API, `POST /2010-04-01/Accounts/{sid}/Messages.json`. */
export const createTwilioSender = (twilio: Twilio, timeoutMs: number): Send => {
  const { accountSid, authToken, baseUrl } = twilio;
  const path = `/2010-04-01/Accounts/${encodeURIComponent(accountSid)}/Messages.json`;
  const url = `${baseUrl.replace(/\/+$/, "")}${path}`;
  const authorization = `Basic ${Buffer.from(`${accountSid}:${authToken}`).toString("base64")}`;

  return async (message, signal) => {
    const request = {
      method: "POST",
      headers: { authorization },
      body: formOf(message, twilio),
      redirect: "manual",
      signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
    } as const;
    const response = await fetch(url, request).catch((error: unknown) => {
      throw failureOf(error);
    });
    await response.body?.cancel();
    if (response.ok) return;
    const { status } = response;
    throw new NotSent(`twilio ${status}`, status >= 400 && status < 500 && !PASSING.has(status));
  };
};
