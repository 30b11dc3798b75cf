import { type DescMessage, type MessageInitShape, create, toBinary } from "@bufbuild/protobuf";
import { anyPack, durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "../gen/google/rpc/status_pb.ts";
import { REASONS, type Reason, Refusal } from "./refusal.ts";

const DOMAIN = "auth-service";

/** A detail of an error, in the form that connect takes. */
export interface Detail {
  readonly desc: DescMessage;
  readonly value: MessageInitShape<DescMessage>;
}

/** An answer that says no, ready for either transport (AIP-193). */
export interface Failure {
  readonly code: Code;
  readonly reason: Reason;
  readonly message: string;
  readonly details: readonly Detail[];
}

const detail = <Desc extends DescMessage>(desc: Desc, value: MessageInitShape<Desc>): Detail => ({
  desc,
  value: create(desc, value),
});

/** What the caller is told: a refusal as it is, anything else as INTERNAL, whose cause stands in the log alone. */
export const failureOf = (error: unknown, requestId: string): Failure => {
  const { reason, code, metadata, violations, retryAfterMs } =
    error instanceof Refusal ? error : new Refusal("INTERNAL", {});
  const details = [
    detail(ErrorInfoSchema, { domain: DOMAIN, reason, metadata: { ...metadata, request_id: requestId } }),
  ];
  if (code === Code.InvalidArgument) details.push(detail(BadRequestSchema, { fieldViolations: [...violations] }));
  if (retryAfterMs !== undefined) {
    details.push(detail(RetryInfoSchema, { retryDelay: durationFromMs(Math.ceil(retryAfterMs)) }));
  }
  const fields = violations.map(({ field, description }) => `${field}: ${description}`).join("; ");
  return { code, reason, message: REASONS[reason].message + (fields && ` (${fields})`), details };
};

/** The failure as the trailer `grpc-status-details-bin` carries it. */
export const statusBinary = ({ code, message, details }: Failure): Uint8Array =>
  toBinary(
    StatusSchema,
    create(StatusSchema, {
      code,
      message,
      details: details.map(({ desc, value }) => anyPack(desc, create(desc, value))),
    }),
  );
