import { z } from "zod";
import { boundedText } from "../bounded-text.ts";
import type { Config } from "../config.ts";
import { type Message, NotSent, type Send } from "./message.ts";

/**
 * Twilio's codes of a sender that is none of the account's, or cannot send there: for whoever runs us to mend, as are all
 * statuses but 400. (twilio.com/docs/api/errors)
 */
const OUR_SENDER: ReadonlySet<unknown> = new Set([
  21212, 21603, 21606, 21659, 21660, 21661, 21701, 21702, 21703, 21704, 63007,
]);
const ANSWER_MAX_BYTES = 65_536;
const refusalBody = z.object({ code: z.number().optional() });

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

/** No other try can do better where Twilio has something against the message itself. */
const refusedBy = async (response: Response): Promise<NotSent> => {
  const { code } = refusalBody.parse(JSON.parse(await boundedText(response, ANSWER_MAX_BYTES)));
  return new NotSent(["twilio", response.status, code].filter(Boolean).join(" "), !OUR_SENDER.has(code));
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
    const post = async () => {
      const response = await fetch(url, request);
      if (response.status === 400) return refusedBy(response);
      await response.body?.cancel();
      return response.ok ? undefined : new NotSent(`twilio ${response.status}`, false);
    };
    const refused = await post().catch(failureOf);
    if (refused) throw refused;
  };
};
