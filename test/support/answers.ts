import { appendFileSync } from "node:fs";
import { ConnectError, type Interceptor } from "@connectrpc/connect";
import { inject } from "vitest";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.ts";
import type { TransportName } from "./channels.ts";

const noted = new Set<string>();

const note = (answer: string) => {
  if (noted.has(answer)) return;
  noted.add(answer);
  appendFileSync(inject("answersFile"), `${answer}\n`);
};

async function* heard<Message>(
  messages: AsyncIterable<Message>,
  say: (what: string) => void,
  sayWhy: (error: unknown) => void,
) {
  try {
    for await (const message of messages) {
      say("answered");
      yield message;
    }
  } catch (error) {
    sayWhy(error);
    throw error;
  }
}

/** Notes how each call ends, for the end of the run, where test/support/global-setup.ts asks what no test has provoked. */
export const noting =
  (transport: TransportName): Interceptor =>
  (next) =>
  async (request) => {
    const say = (what: string) => note(`${request.method.name} ${transport} ${what}`);
    const sayWhy = (error: unknown) =>
      say(ConnectError.from(error).findDetails(ErrorInfoSchema)[0]?.reason ?? "failed");
    try {
      const response = await next(request);
      if (response.stream) return { ...response, message: heard(response.message, say, sayWhy) };
      say("answered");
      return response;
    } catch (error) {
      sayWhy(error);
      throw error;
    }
  };
