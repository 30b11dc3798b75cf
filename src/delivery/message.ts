import type { Channel, PurposeCode } from "../auth/otp-codes.ts";

/** A rendered message on its way to one person. */
export interface Message {
  readonly otpId: string;
  readonly channel: Channel;
  readonly purpose: PurposeCode;
  /** An e-mail address, or a phone number in E.164. */
  readonly to: string;
  readonly subject: string;
  readonly text: string;
  readonly html: string;
  /** For SMS and WhatsApp. */
  readonly short: string;
}

/** Hands a message to a provider. @throws NotSent */
export type Send = (message: Message, signal: AbortSignal) => Promise<void>;

/** What sends on each channel; one that is not there has nothing configured for it. */
export type Senders = ReadonlyMap<Channel, Send>;

/** What a provider answers quotes what it was sent: of a failure only its class and status are kept. */
export class NotSent extends Error {
  override readonly name = "NotSent";
  /** No further try can end otherwise. */
  readonly final: boolean;
  constructor(summary: string, final: boolean) {
    super(summary);
    this.final = final;
  }
}

/** The class of an unexpected error, which may quote anything. */
export const asNotSent = (error: unknown): NotSent =>
  error instanceof NotSent ? error : new NotSent(error instanceof Error ? error.constructor.name : typeof error, false);
