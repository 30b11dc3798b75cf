import { createServer } from "node:http";
import { text } from "node:stream/consumers";
import { onTestFinished } from "vitest";
import { listenOn } from "./ports.ts";

interface TwilioRequest {
  readonly method: string | undefined;
  readonly path: string | undefined;
  readonly authorization: string | undefined;
  readonly form: Readonly<Record<string, string>>;
}

export interface TwilioServer {
  readonly url: string;
  readonly requests: TwilioRequest[];
  /** The status of each next answer, the last for all that follow; 0 never answers. */
  answer(...statuses: number[]): void;
  /** The code of refusals from now on. */
  refuseBy(code: number): void;
}

/** Speaks as Twilio's messages API does, and quotes what it was sent, as that does. */
export const startTwilio = async (): Promise<TwilioServer> => {
  const requests: TwilioRequest[] = [];
  let statuses = [201];
  let code: number | undefined;
  const server = createServer((request, response) => {
    void text(request).then((body) => {
      const { method, url: path, headers } = request;
      requests.push({
        method,
        path,
        authorization: headers.authorization,
        form: Object.fromEntries(new URLSearchParams(body)),
      });
      const status = (statuses.length > 1 ? statuses.shift() : statuses[0]) ?? 201;
      if (status === 0) return;
      response
        .writeHead(status, { "content-type": "application/json" })
        .end(JSON.stringify({ code, status, message: body }));
    });
  });
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return {
    url: `http://127.0.0.1:${await listenOn(server)}`,
    requests,
    answer(...next) {
      statuses = next;
    },
    refuseBy(next) {
      code = next;
    },
  };
};
