import { type DescMethod, fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { codeFromString } from "@connectrpc/connect/protocol-connect";
import { Client, type Metadata, Metadata as GrpcMetadata, type ServiceError, credentials } from "@grpc/grpc-js";
import { BadRequestSchema, type ErrorInfo, ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "../../src/gen/google/rpc/status_pb.ts";
import type { RunningServer } from "../../src/server.ts";
import { beginConnect, beginGrpc, isStream } from "./raw-streams.ts";

/** One answer as it came over the wire, read by nothing of ours. */
export interface RawAnswer {
  /** 0 is OK. */
  readonly code: number;
  readonly message: string;
  readonly details: readonly { readonly typeUrl: string; readonly value: Uint8Array }[];
  readonly requestId: string | undefined;
  readonly body: Uint8Array;
  /** Everything that a caller can read, as text. */
  readonly text: string;
}

export interface RawCaller {
  call(method: DescMethod, body: Uint8Array | string, headers?: Readonly<Record<string, string>>): Promise<RawAnswer>;
  close(): void;
}

const asIs = (bytes: Buffer) => bytes;

const pathOf = (method: DescMethod) => `/${method.parent.typeName}/${method.name}`;

const textOf = (metadata: Metadata) =>
  Object.entries(metadata.toJSON()).map(([name, values]) => `${name}: ${values.map(String).join()}`);

const failed = (error: ServiceError): RawAnswer => {
  const [binary] = error.metadata.get("grpc-status-details-bin");
  const status = binary instanceof Buffer ? fromBinary(StatusSchema, binary) : undefined;
  return {
    code: error.code,
    message: error.details,
    details: status?.details ?? [],
    requestId: error.metadata.get("x-request-id")[0]?.toString(),
    body: new Uint8Array(),
    text: [error.details, ...textOf(error.metadata)].join("\n"),
  };
};

const begun = (header: Metadata): RawAnswer => ({
  code: 0,
  message: "",
  details: [],
  requestId: header.get("x-request-id")[0]?.toString(),
  body: new Uint8Array(),
  text: textOf(header).join("\n"),
});

/** A plain grpc-js client that sends the bytes it is given; a stream has answered once it has begun. */
export const rawGrpc = ({ grpcPort }: RunningServer): RawCaller => {
  const client = new Client(`127.0.0.1:${grpcPort}`, credentials.createInsecure());
  return {
    call: (method, body, headers = {}) =>
      new Promise((resolve) => {
        const metadata = new GrpcMetadata();
        for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
        if (isStream(method)) {
          void beginGrpc(client, pathOf(method), Buffer.from(body), metadata).then((beginning) =>
            resolve("error" in beginning ? failed(beginning.error) : begun(beginning.header as Metadata)),
          );
          return;
        }
        let sent = new GrpcMetadata();
        const options = { deadline: Date.now() + 10_000 };
        const call = client.makeUnaryRequest(
          pathOf(method),
          asIs,
          asIs,
          Buffer.from(body),
          metadata,
          options,
          (error, value) => {
            if (error) return resolve(failed(error));
            const requestId = sent.get("x-request-id")[0]?.toString();
            resolve({
              code: 0,
              message: "",
              details: [],
              requestId,
              body: value ?? new Uint8Array(),
              text: textOf(sent).join("\n"),
            });
          },
        );
        call.on("metadata", (initial) => (sent = initial));
      }),
    close: () => client.close(),
  };
};

interface ConnectErrorJson {
  readonly code?: string;
  readonly message?: string;
  readonly details?: readonly { readonly type: string; readonly value: string }[];
}

const parsed = (text: string): ConnectErrorJson => {
  try {
    return JSON.parse(text) as ConnectErrorJson;
  } catch {
    return {};
  }
};

/** What Connect answered: an error as JSON, or a message. */
const answerOf = (response: Response, errorText: string | undefined, body: Uint8Array): RawAnswer => {
  const error = errorText === undefined ? {} : parsed(errorText);
  const details = (error.details ?? []).map(({ type, value }) => ({
    typeUrl: `type.googleapis.com/${type}`,
    value: Buffer.from(value, "base64"),
  }));
  const header = [...response.headers].map(([name, value]) => `${name}: ${value}`);
  const decodedDetails = details.map(({ value }) => Buffer.from(value).toString("latin1"));
  return {
    code: errorText === undefined ? 0 : (codeFromString(error.code as never) ?? -response.status),
    message: error.message ?? "",
    details,
    requestId: response.headers.get("x-request-id") ?? undefined,
    body,
    text: [...header, errorText ?? "", ...decodedDetails].join("\n"),
  };
};

/** Connect by hand: a POST of JSON for a string, of a binary message for bytes. */
export const rawConnect = ({ httpPort }: RunningServer): RawCaller => ({
  async call(method, body, headers = {}) {
    const url = `http://127.0.0.1:${httpPort}${pathOf(method)}`;
    if (isStream(method)) {
      const beginning = await beginConnect(url, body, headers);
      return "error" in beginning
        ? answerOf(beginning.response, beginning.error, new Uint8Array())
        : answerOf(beginning.response, undefined, beginning.body);
    }
    const contentType = typeof body === "string" ? "application/json" : "application/proto";
    const response = await fetch(url, {
      method: "POST",
      headers: { "content-type": contentType, "connect-protocol-version": "1", ...headers },
      body: typeof body === "string" ? body : Buffer.from(body),
    });
    const bytes = new Uint8Array(await response.arrayBuffer());
    return answerOf(response, response.ok ? undefined : Buffer.from(bytes).toString(), bytes);
  },
  close: () => undefined,
});

export const rawCallers = { grpc: rawGrpc, connect: rawConnect } as const;

export const errorInfoOf = ({ details }: RawAnswer): ErrorInfo | undefined =>
  details.map((any) => anyUnpack(any as never, ErrorInfoSchema)).find((info) => info !== undefined);

export const badFieldsOf = ({ details }: RawAnswer): readonly string[] =>
  details.flatMap((any) => anyUnpack(any as never, BadRequestSchema)?.fieldViolations.map(({ field }) => field) ?? []);
