import { Metadata } from "@grpc/grpc-js";
import { type Failure, statusBinary } from "./failure.ts";
import type { Status } from "./grpc-arrivals.ts";

/** Below this many bytes a message is copied into Node's pool: to ask V8 for its memory, as a view does, costs more. */
const COPIED_BYTES = 1_024;

export const asBuffer = (bytes: Uint8Array): Buffer =>
  bytes.length < COPIED_BYTES ? Buffer.from(bytes) : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** A failure as gRPC answers it. */
export const statusOf = (failure: Failure, requestId: string): Status => {
  const metadata = new Metadata();
  metadata.set("x-request-id", requestId);
  metadata.set("grpc-status-details-bin", asBuffer(statusBinary(failure)));
  return { code: failure.code, details: failure.message, metadata };
};

/** A request id as it is sent: by then it has been checked, which `set` would do again. */
export class RequestIdMetadata extends Metadata {
  readonly #requestId: string;

  constructor(requestId: string) {
    super();
    this.#requestId = requestId;
  }

  override toHttp2Headers() {
    return { "x-request-id": this.#requestId };
  }
}
