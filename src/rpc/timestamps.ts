import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Timestamp, TimestampSchema } from "@bufbuild/protobuf/wkt";

/** Since 1970, cut to the microsecond, which is what the database keeps; null where there is none. */
export const microsecondsOf = (time: Timestamp | undefined): bigint | null =>
  time ? time.seconds * 1_000_000n + BigInt(Math.trunc(time.nanos / 1_000)) : null;

/** Rounded up: to times of whole microseconds both `>=` and `<` then mean what nanoseconds would. */
export const microsecondsRoundedUp = ({ seconds, nanos }: Timestamp): bigint =>
  seconds * 1_000_000n + BigInt(Math.ceil(nanos / 1_000));

/** Of microseconds since 1970. */
export const timestampOf = (us: bigint): MessageInitShape<typeof TimestampSchema> => {
  const micros = ((us % 1_000_000n) + 1_000_000n) % 1_000_000n;
  return { seconds: (us - micros) / 1_000_000n, nanos: Number(micros) * 1_000 };
};
