import type { Config } from "../config.ts";
import { onFirstUse } from "../first-use.ts";
import { NotSent, type Send } from "./message.ts";

/** What nodemailer says of a failure, as far as it says it. */
interface SmtpError {
  readonly code?: unknown;
  readonly responseCode?: unknown;
  /** What was answered so. */
  readonly command?: unknown;
}

/** nodemailer's codes of what a server refuses in a recipient or a message, as opposed to a login or a connection. */
const REFUSALS: ReadonlySet<unknown> = new Set(["EENVELOPE", "EMESSAGE"]);
/** It wants a login, or TLS, first (RFC 5321, 4.2.3; RFC 4954, 6; RFC 3207, 4): that is for whoever runs us to mend. */
const NOT_READY: ReadonlySet<unknown> = new Set([503, 530]);
/** What it refuses here is our own address. */
const OUR_ADDRESS = "MAIL FROM";

const isFinal = ({ code, command }: SmtpError, status: number): boolean =>
  // RFC 5321, 4.2.1: only a 5yz answer is permanent.
  status >= 500 && REFUSALS.has(code) && !NOT_READY.has(status) && command !== OUR_ADDRESS;

const notSent = (error: unknown): NotSent => {
  const { code, responseCode } = error as SmtpError;
  const status = typeof responseCode === "number" ? responseCode : undefined;
  const summary = ["smtp", typeof code === "string" ? code : "error", status].filter(Boolean).join(" ");
  return new NotSent(summary, status !== undefined && isFinal(error as SmtpError, status));
};

/**
 * Sends by SMTP, each message on a connection of its own; TLS is as the URL says.
 *
 * @param timeoutMs for connection, greeting and silence each, and for the whole.
 */
export const createEmailSender = ({ url, from }: NonNullable<Config["delivery"]["smtp"]>, timeoutMs: number): Send => {
  const transport = onFirstUse(async () => {
    // With the first mail: it takes some 20 MB, and who sends none need not hold them.
    const { createTransport } = await import("nodemailer");
    return createTransport({
      url,
      connectionTimeout: timeoutMs,
      greetingTimeout: timeoutMs,
      socketTimeout: timeoutMs,
      dnsTimeout: timeoutMs,
      disableFileAccess: true,
      disableUrlAccess: true,
    });
  });
  const domain = from.address.replace(/^.*@/, "");

  return async ({ otpId, to, subject, text, html }, signal) => {
    try {
      const transporter = await transport();
      await transporter.sendMail({
        from: { ...from },
        // As an object, since a string is a list of addresses.
        to: { name: "", address: to },
        subject,
        text,
        html,
        // The same in each try, so that a message that came twice is seen as one.
        messageId: `<${otpId}@${domain}>`,
        headers: { "Auto-Submitted": "auto-generated" },
        signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
      });
    } catch (error) {
      throw notSent(error);
    }
  };
};
