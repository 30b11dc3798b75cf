import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { type ParsedMail, simpleParser } from "mailparser";
import { SMTPServer, type SMTPServerOptions } from "smtp-server";
import { onTestFinished } from "vitest";
import type { Identity } from "./certificates.ts";

type Refused = "recipient" | "sender" | "message";

export interface MailServer {
  readonly url: string;
  /** What it took, in order. */
  readonly mails: ParsedMail[];
  /** Answers every recipient, sender or message so from now on; undefined takes them. */
  refuse(status: number | undefined, what?: Refused): void;
  /** Answers no message from now on, until what is returned is called. */
  hold(): () => void;
  /** How many messages it was given, answered or not. */
  readonly given: () => number;
}

const failure = (status: number, text: string) => Object.assign(new Error(text), { responseCode: status });

/** A real SMTP server, stopped when the test has finished. With an identity it speaks TLS from the first byte. */
export const startMailServer = async (identity?: Identity): Promise<MailServer> => {
  const mails: ParsedMail[] = [];
  let status: number | undefined;
  let refused: Refused = "recipient";
  let held: Promise<undefined> = Promise.resolve(undefined);
  let given = 0;
  const options: SMTPServerOptions = {
    authOptional: true,
    disabledCommands: identity ? [] : ["STARTTLS"],
    ...(identity && { secure: true, cert: identity.cert, key: identity.key }),
    onMailFrom(_address, _session, done) {
      done(status !== undefined && refused === "sender" ? failure(status, "not you") : null);
    },
    onRcptTo({ address }, _session, done) {
      // As servers do, it quotes what it refuses.
      done(status !== undefined && refused === "recipient" ? failure(status, `no thanks for ${address}`) : null);
    },
    onData(stream, _session, done) {
      given++;
      const parsed = simpleParser(stream);
      void Promise.all([parsed, held]).then(([mail]) => {
        if (status !== undefined && refused === "message") return done(failure(status, "no thanks for this"));
        mails.push(mail);
        done();
      }, done);
    },
  };
  const server = new SMTPServer(options);
  // A client that goes away is no failure of a test.
  server.on("error", () => undefined);
  server.listen(0, "127.0.0.1");
  await once(server.server, "listening");
  onTestFinished(() => new Promise<void>((resolve) => server.close(resolve)));
  const { port } = server.server.address() as AddressInfo;
  return {
    url: `${identity ? "smtps" : "smtp"}://127.0.0.1:${port}`,
    mails,
    refuse(next, what = "recipient") {
      status = next;
      refused = what;
    },
    hold() {
      const { promise, resolve } = Promise.withResolvers<undefined>();
      held = promise;
      return () => {
        held = Promise.resolve(undefined);
        resolve(undefined);
      };
    },
    given: () => given,
  };
};
