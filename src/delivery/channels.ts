import type { Config } from "../config.ts";

export type Channel = "email" | "sms" | "whatsapp";

/** The channels that something is configured for: a provider, or the outbox folder of development. */
export const availableChannels = ({ smtp, twilio, outboxDir }: Config["delivery"]): ReadonlySet<Channel> =>
  new Set<Channel>(
    outboxDir === undefined
      ? [
          ...(smtp ? (["email"] as const) : []),
          ...(twilio?.smsFrom ? (["sms"] as const) : []),
          ...(twilio?.whatsAppFrom ? (["whatsapp"] as const) : []),
        ]
      : ["email", "sms", "whatsapp"],
  );
