import type { Interceptor, Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import type { RunningServer } from "../../src/server.ts";
import { noting } from "./answers.ts";

/** Each RPC test runs on both: a handler never knows which one called it. */
export const transports = ["grpc", "connect"] as const;
export type TransportName = (typeof transports)[number];

/** A way to a server, by the port of the transport. */
export const channelOf = (
  transport: TransportName,
  { grpcPort, httpPort }: Pick<RunningServer, "grpcPort" | "httpPort">,
  interceptors: readonly Interceptor[] = [],
): Transport => {
  const options = { interceptors: [...interceptors, noting(transport)] };
  return transport === "grpc"
    ? createGrpcTransport({ ...options, baseUrl: `http://127.0.0.1:${grpcPort}` })
    : createConnectTransport({
        ...options,
        baseUrl: `http://127.0.0.1:${httpPort}`,
        httpVersion: "1.1",
        useBinaryFormat: false,
      });
};
