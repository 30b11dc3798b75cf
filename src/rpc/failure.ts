import { type DescMessage, type Message, type MessageInitShape, create, toBinary } from "@bufbuild/protobuf";
import { anyPack, durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "../gen/google/rpc/status_pb.ts";
import { type FieldViolation, REASONS, type Reason, Refusal } from "./refusal.ts";

const DOMAIN = "auth-service";

/**
 * So many broken fields are told, and so many in the message, whatever else is broken: over gRPC the message and the details
 * go in trailers, of which many clients take 8 KiB, and nghttp2 resets a connection with all its calls at 64.
 */
const VIOLATIONS_MAX = 20;
const NAMED_MAX = 5;

/** A detail of an error, in the form that connect takes. */
interface Detail {
  readonly desc: DescMessage;
  readonly value: Message;
}

/** An answer that says no, ready for either transport (AIP-193). */
export interface Failure {
  readonly code: Code;
  /** None where the transport refused the call: it has its code alone. */
  readonly reason: Reason | undefined;
  readonly message: string;
  readonly details: readonly Detail[];
}

const detail = <Desc extends DescMessage>(desc: Desc, value: MessageInitShape<Desc>): Detail => ({
  desc,
  value: create(desc, value),
});

const inWords = (violations: readonly FieldViolation[]): string => {
  if (violations.length === 0) return "";
  const named = violations
    .slice(0, NAMED_MAX)
    .map(({ field, description }) => (field === "" ? description : `${field}: ${description}`));
  const more = violations.length - named.length;
  return ` (${[...named, ...(more > 0 ? [`and ${more} more`] : [])].join("; ")})`;
};

/** What the caller is told: a refusal as it is, anything else as INTERNAL, whose cause stands in the log alone. */
export const failureOf = (error: unknown, requestId: string): Failure => {
  if (error instanceof ConnectError)
    return { code: error.code, reason: undefined, message: error.rawMessage, details: [] };
  const { reason, code, metadata, violations, retryAfterMs } =
    error instanceof Refusal ? error : new Refusal("INTERNAL", {});
  const details = [
    detail(ErrorInfoSchema, { domain: DOMAIN, reason, metadata: { ...metadata, request_id: requestId } }),
  ];
  if (code === Code.InvalidArgument)
    details.push(detail(BadRequestSchema, { fieldViolations: violations.slice(0, VIOLATIONS_MAX) }));
  if (retryAfterMs !== undefined) {
    details.push(detail(RetryInfoSchema, { retryDelay: durationFromMs(Math.ceil(retryAfterMs)) }));
  }
  return { code, reason, message: REASONS[reason].message + inWords(violations), details };
};

/** The failure as the trailer `grpc-status-details-bin` carries it. */
export const statusBinary = ({ code, message, details }: Failure): Uint8Array => {
  const packed = details.map(({ desc, value }) => anyPack(desc, value));
  return toBinary(StatusSchema, create(StatusSchema, { code, message, details: packed }));
};
