import type { IncomingHttpHeaders } from "node:http2";
import { Metadata, logVerbosity, setLogVerbosity } from "@grpc/grpc-js";
import { TIMER_MAX_MS } from "../config-values.ts";

/** What a header of gRPC may hold, but for those whose names end in `-bin`. */
const PRINTABLE = /^[ -~]*$/;
/** Stands for a value that is none: no reader of ours takes it. */
const BROKEN = " ";

/** As HTTP/1 strips them; gRPC lets a server do so. */
const PADDED = /^[ \t]|[ \t]$/;

const TIMEOUT = /^(\d{1,8})([HMSmun])$/;
const UNIT_MS: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 1e-3, n: 1e-6 };
const TIMEOUT_MAX = `${Math.floor(TIMER_MAX_MS / 1_000)}S`;
/** Longer than any name of an encoding; an error quotes it. */
const ENCODING_MAX = 32;

/** A `grpc-timeout` that a timer can hold; undefined for what is none. */
export const shortTimeout = (sent: string): string | undefined => {
  const [, amount, unit = ""] = TIMEOUT.exec(sent) ?? [];
  if (amount === undefined) return undefined;
  return Number(amount) * (UNIT_MS[unit] ?? 0) > TIMER_MAX_MS ? TIMEOUT_MAX : sent;
};

const readable = (name: string, sent: string): string => {
  const value = PADDED.test(sent) ? sent.trim() : sent;
  // grpc-js finds a deadline anywhere in a text, counts it in 32 bits, and quotes what is none, however long.
  if (name === "grpc-timeout") return shortTimeout(value) ?? BROKEN;
  if (name === "grpc-encoding") return value.slice(0, ENCODING_MAX);
  return name.endsWith("-bin") || PRINTABLE.test(value) ? value : BROKEN;
};

/** Headers as grpc-js can read them all: most are as they came. */
const cleaned = (headers: IncomingHttpHeaders): IncomingHttpHeaders => {
  let clean = headers;
  for (const name in headers) {
    const value = headers[name];
    if (typeof value !== "string") continue;
    const kept = readable(name, value);
    if (kept === value) continue;
    if (clean === headers) clean = { ...headers };
    clean[name] = kept;
  }
  return clean;
};

const read = Metadata.fromHttp2Headers.bind(Metadata);

/**
 * Has grpc-js, in the whole process, read a header that it would leave out: an `x-actor-token` that is none must refuse its
 * call. It also wrote such headers to stderr, tokens among them; of what it logs nothing is for an operator.
 */
export const readEveryHeader = (): void => {
  setLogVerbosity(logVerbosity.NONE);
  Metadata.fromHttp2Headers = (headers) => read(cleaned(headers));
};
