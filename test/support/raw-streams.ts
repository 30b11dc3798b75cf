import type { DescMethod } from "@bufbuild/protobuf";
import type { Client, Metadata, ServiceError } from "@grpc/grpc-js";
import { frame } from "./frames.ts";

/** How a stream began: with headers or a message, or with an error. */
export type RawBeginning<Failure> =
  { readonly error: Failure } | { readonly header: Metadata | Headers; readonly body: Uint8Array };

/** How long a Connect stream may stay silent, in milliseconds: what refuses it comes sooner. */
const SILENCE_MS = 200;
const END_STREAM = 2;
const PREFIX = 5;

export const isStream = ({ methodKind }: DescMethod): boolean => methodKind === "server_streaming";

const asIs = (bytes: Buffer) => bytes;

/** Begins a stream over grpc-js and leaves it. */
export const beginGrpc = (
  client: Client,
  path: string,
  body: Buffer,
  metadata: Metadata,
): Promise<RawBeginning<ServiceError>> =>
  new Promise((resolve) => {
    const stream = client.makeServerStreamRequest(path, asIs, asIs, body, metadata, { deadline: Date.now() + 10_000 });
    stream.on("error", (error: ServiceError) => resolve({ error }));
    stream.on("metadata", (header) => {
      resolve({ header, body: new Uint8Array() });
      stream.cancel();
    });
    stream.resume();
  });

/** The first message, or the error of an end; a stream that says nothing in its time has begun. */
const firstOf = async (body: ReadableStream<Uint8Array>): Promise<{ end: boolean; data: Buffer }> => {
  const reader = body.getReader();
  let read = Buffer.alloc(0);
  for (;;) {
    const { done, value } = await reader.read();
    if (value) read = Buffer.concat([read, value]);
    const length = read.length >= PREFIX ? read.readUInt32BE(1) : Infinity;
    if (read.length >= PREFIX + length || done) {
      await reader.cancel();
      return { end: done || read.readUInt8(0) === END_STREAM, data: read.subarray(PREFIX, PREFIX + length) };
    }
  }
};

/** Begins a stream over Connect and leaves it; the error is the JSON of its end. */
export const beginConnect = async (
  url: string,
  body: Uint8Array | string,
  headers: Readonly<Record<string, string>>,
): Promise<RawBeginning<string> & { readonly response: Response }> => {
  const response = await fetch(url, {
    method: "POST",
    headers: {
      "content-type": typeof body === "string" ? "application/connect+json" : "application/connect+proto",
      "connect-protocol-version": "1",
      "connect-timeout-ms": String(SILENCE_MS),
      ...headers,
    },
    body: frame(body),
  });
  if (!response.ok || !response.body) return { response, error: await response.text() };
  const { end, data } = await firstOf(response.body);
  if (!end) return { response, header: response.headers, body: data };
  const { error } = JSON.parse(data.toString()) as { error?: { code: string } };
  if (error && error.code !== "deadline_exceeded") return { response, error: JSON.stringify(error) };
  return { response, header: response.headers, body: new Uint8Array() };
};
