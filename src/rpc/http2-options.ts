import type { ServerOptions } from "node:http2";
import type { Server } from "@grpc/grpc-js";

/** How a server speaks HTTP/2, on both ports, where Node's defaults end calls that are in order. */
export const HTTP2_OPTIONS = {
  // Else a header with spaces around its value is left out without a word, and its call goes on without its actor or deadline.
  strictFieldWhitespaceValidation: false,
  // How many calls may be given up on a connection at once and in a second, before it is ended with everybody's calls on
  // it: 1,000 and 33 by default, and as many deadlines pass whenever a busy caller has to wait. Here it is as many as a
  // replica can answer: one that is given up costs no more than one that is not.
  streamResetBurst: 20_000,
  streamResetRate: 20_000,
  // Those just given up count among the calls under way, and more than there may be were 100 in a connection's life.
  maxSessionRejectedStreams: 2 ** 32 - 1,
} as const satisfies ServerOptions;

/** For a server of grpc-js, which has no options for these and keeps those of its HTTP/2 to itself. */
export const setHttp2Options = (server: Server): void => {
  Object.assign(Reflect.get(server, "commonServerOptions") as object, HTTP2_OPTIONS);
};
