import type { Registry } from "prom-client";
import type { Channel } from "../auth/otp-codes.ts";
import type { Config } from "../config.ts";
import type { Database } from "../db/pool.ts";
import type { Log } from "../log.ts";
import type { Macs } from "../macs.ts";
import { createCodeSender } from "./code-sender.ts";
import { createEmailSender } from "./email.ts";
import type { Send, Senders } from "./message.ts";
import { createDeliveryMetrics } from "./metrics.ts";
import { createOutbox } from "./outbox.ts";
import { type Runner, startRunner } from "./runner.ts";
import { createTwilioSender } from "./sms.ts";
import type { Templates } from "./templates.ts";

/** What sends on each channel: its provider, or the outbox folder of development. */
export const createSenders = ({ smtp, twilio, outboxDir, timeoutMs }: Config["delivery"]): Senders => {
  const outbox = outboxDir === undefined ? undefined : createOutbox(outboxDir);
  const email = smtp ? createEmailSender(smtp, timeoutMs) : outbox;
  const phone = twilio && createTwilioSender(twilio, timeoutMs);
  const sms = twilio?.smsFrom === undefined ? outbox : phone;
  const whatsApp = twilio?.whatsAppFrom === undefined ? outbox : phone;
  const senders = new Map<Channel, Send>();
  if (email) senders.set("email", email);
  if (sms) senders.set("sms", sms);
  if (whatsApp) senders.set("whatsapp", whatsApp);
  return senders;
};

interface DeliveryOptions {
  readonly config: Config;
  readonly databaseUrl: string;
  readonly db: Database;
  /** Of few connections that no call waits for. */
  readonly probe: Database;
  readonly macs: Macs;
  readonly templates: Templates;
  readonly senders: Senders;
  readonly registry: Registry;
  readonly log: Log;
  readonly ready: () => boolean;
}

/** Sends what is enqueued, beside the calls. */
export const startDelivery = (options: DeliveryOptions): Runner => {
  const { config, databaseUrl, db, probe, macs, templates, senders, registry, log, ready } = options;
  const { attemptMax, concurrency } = config.delivery;
  const count = createDeliveryMetrics(registry, probe, log);
  const send = createCodeSender({ db, macs, templates, senders, attemptMax, count, log });
  return startRunner({ databaseUrl, settings: config.database, concurrency, db: probe, log, ready, send });
};
