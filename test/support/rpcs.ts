import { globSync } from "node:fs";
import {
  type DescMethod,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type DescService,
  type Message,
  create,
  getOption,
  hasOption,
} from "@bufbuild/protobuf";
import { Code, ConnectError, type Transport } from "@connectrpc/connect";
import { type CallerRule, caller_rule } from "../../src/gen/caller/v1/caller_pb.ts";
import type { RunningServer } from "../../src/server.ts";
import { type TransportName, channelOf } from "./channels.ts";

/** One RPC of ours, found in the generated code: a new one is tested without being named anywhere. */
export interface Rpc {
  readonly name: string;
  readonly method: DescMethodUnary | DescMethodServerStreaming;
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

const isOurs = (method: DescMethod): method is Rpc["method"] =>
  method.methodKind === "unary" || method.methodKind === "server_streaming";

export const rpcs: readonly Rpc[] = services.flatMap(({ methods }) =>
  methods.filter(isOurs).map((method) => ({ name: method.name, method, rule: getOption(method, caller_rule).rule })),
);

/** Those that a caller must prove itself to. */
export const guarded = rpcs.filter(({ rule }) => rule.case !== "anonymous");

/** The permissions that any method names. */
export const catalogue = [...new Set(rpcs.flatMap(({ rule }) => (rule.case === "permission" ? [rule.value] : [])))];

/** Whether it changes nothing, by its name: AIP's verbs, ours, and the verifying of tokens. test/rpc/reads.test.ts holds them to it. */
export const isRead = ({ name }: Pick<Rpc, "name">): boolean =>
  /^(Get|List|BatchGet|Check|BatchCheck|Explain|Watch)|^Verify\w*Token$/.test(name);

// A stream that says nothing for so long has begun: what refuses it comes sooner.
const SILENCE_MS = 1_000;

/** A stream's first message, or an empty one where none comes. */
const firstOf = async (
  channel: Transport,
  method: DescMethodServerStreaming,
  request: Message,
  headers: Readonly<Record<string, string>>,
) => {
  const controller = new AbortController();
  const requests = (async function* () {
    yield request;
  })();
  const stream = await channel.stream(method, controller.signal, SILENCE_MS, headers, requests);
  const { header } = stream;
  try {
    for await (const message of stream.message) return { message, header };
  } catch (error) {
    if (!(error instanceof ConnectError && error.code === Code.DeadlineExceeded)) throw error;
  } finally {
    controller.abort();
  }
  return { message: create(method.output), header };
};

/** Sends any RPC's request, and reads its answer or a stream's first message; a refusal is a ConnectError. */
export type SendRpc = (
  rpc: Rpc,
  request: Message,
  headers?: Readonly<Record<string, string>>,
) => Promise<{ readonly message: Message; readonly header: Headers }>;

export const sender = (transport: TransportName, server: RunningServer): SendRpc => {
  const channel = channelOf(transport, server);
  return ({ method }, request, headers = {}) =>
    method.methodKind === "unary"
      ? channel.unary(method, undefined, 10_000, headers, request)
      : firstOf(channel, method, request, headers);
};

export const bearer = (token: string): Readonly<Record<string, string>> => ({ authorization: `Bearer ${token}` });
