import { inspect } from "node:util";
import { ConnectError } from "@connectrpc/connect";
import { expect } from "vitest";
import { BadRequestSchema, ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.ts";
import { REASONS, type Reason } from "../../src/rpc/refusal.ts";

/** What a refused call said: its reason, metadata and broken fields. */
export interface Refused {
  readonly error: ConnectError;
  readonly reason: string | undefined;
  readonly metadata: Readonly<Record<string, string>>;
  readonly fields: readonly string[];
}

/** Waits for a call to be refused, and reads the details of its error. */
export const refused = async (call: Promise<unknown>): Promise<Refused> => {
  const error = await call.then(
    (answer) => expect.fail(`the call was answered: ${inspect(answer)}`),
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof ConnectError)) throw error;
  const [info] = error.findDetails(ErrorInfoSchema);
  const [badRequest] = error.findDetails(BadRequestSchema);
  return {
    error,
    reason: info?.reason,
    metadata: info?.metadata ?? {},
    fields: badRequest?.fieldViolations.map(({ field }) => field) ?? [],
  };
};

/** Asserts that a call is refused with this reason, and with the one code that the reason has. */
export const expectRefusal = async (call: Promise<unknown>, reason: Reason): Promise<Refused> => {
  const answer = await refused(call);
  expect({ reason: answer.reason, code: answer.error.code }).toEqual({ reason, code: REASONS[reason].code });
  return answer;
};
