import { globSync } from "node:fs";
import { type DescMethodUnary, type DescService, type Message, getOption, hasOption } from "@bufbuild/protobuf";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { type CallerRule, caller_rule } from "../../src/gen/caller/v1/caller_pb.ts";
import type { RunningServer } from "../../src/server.ts";
import type { TransportName } from "./service.ts";

/** One RPC of ours, found in the generated code: a new one is tested without being named anywhere. */
export interface Rpc {
  readonly name: string;
  readonly method: DescMethodUnary;
  readonly rule: CallerRule["rule"];
}

const isService = (value: unknown): value is DescService => (value as { kind?: unknown } | null)?.kind === "service";

const generated = await Promise.all(
  globSync("src/gen/*/v1/*_pb.ts").map(
    (file) => import(new URL(`../../${file}`, import.meta.url).href) as Promise<Record<string, unknown>>,
  ),
);

/** The services whose methods say who may call them. */
export const services: readonly DescService[] = generated
  .flatMap((module) => Object.values(module))
  .filter(isService)
  .filter(({ methods }) => methods.some((method) => hasOption(method, caller_rule)));

export const rpcs: readonly Rpc[] = services.flatMap(({ methods }) =>
  methods
    .filter((method): method is DescMethodUnary => method.methodKind === "unary")
    .map((method) => ({ name: method.name, method, rule: getOption(method, caller_rule).rule })),
);

/** Sends any RPC's request; a refusal is a ConnectError. */
export type SendRpc = (
  rpc: Rpc,
  request: Message,
  headers?: Readonly<Record<string, string>>,
) => Promise<{ readonly message: Message; readonly header: Headers }>;

export const sender = (transport: TransportName, { grpcPort, httpPort }: RunningServer): SendRpc => {
  const channel =
    transport === "grpc"
      ? createGrpcTransport({ baseUrl: `http://127.0.0.1:${grpcPort}` })
      : createConnectTransport({ baseUrl: `http://127.0.0.1:${httpPort}`, httpVersion: "1.1", useBinaryFormat: false });
  return ({ method }, request, headers = {}) => channel.unary(method, undefined, 10_000, headers, request);
};

export const bearer = (token: string): Readonly<Record<string, string>> => ({ authorization: `Bearer ${token}` });
