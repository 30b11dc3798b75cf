import type { Http2Server, ServerOptions, Settings } from "node:http2";
import type { Server } from "@grpc/grpc-js";

/** How a server speaks HTTP/2, on both ports, where Node's defaults end calls that are in order. */
export const HTTP2_OPTIONS = {
  // Else a header with spaces around its value is left out without a word, and its call goes on without its actor or deadline.
  strictFieldWhitespaceValidation: false,
  // How many calls may be given up on a connection at once and in a second, before it is ended with everybody's calls on
  // it: 1,000 and 33 by default, and as many deadlines pass whenever a busy caller has to wait. Here it is what a replica
  // answers in a second or two; with four times as many a hostile peer fills a gigabyte before they are collected.
  streamResetBurst: 10_000,
  streamResetRate: 5_000,
  // A call just given up still counts as under way, and by default a connection ends once it has sent 100 calls too many.
  maxSessionRejectedStreams: 2 ** 32 - 1,
} as const satisfies ServerOptions;

/** What a server tells of itself, on both ports. */
export const HTTP2_SETTINGS = {
  // Larger headers end a connection with everybody's calls on it: clients who know so end the one call themselves.
  maxHeaderListSize: 65_536,
} as const satisfies Settings;

/** For a server of grpc-js, which has no options for these and keeps those of its HTTP/2 to itself. */
export const setHttp2Options = (server: Server): void => {
  const options = Reflect.get(server, "commonServerOptions") as ServerOptions;
  Object.assign(options, HTTP2_OPTIONS, { settings: { ...options.settings, ...HTTP2_SETTINGS } });
};

type SetUp = (http2: Http2Server | null, ...rest: readonly unknown[]) => void;

/** Hands over each HTTP/2 server that one of grpc-js makes, which keeps it to itself. */
export const onHttp2Server = (server: Server, take: (http2: Http2Server) => void): void => {
  const setUp = Reflect.get(server, "_setupHandlers") as SetUp;
  const takeAndSetUp: SetUp = (http2, ...rest) => {
    if (http2) take(http2);
    setUp.call(server, http2, ...rest);
  };
  Reflect.set(server, "_setupHandlers", takeAndSetUp);
};
