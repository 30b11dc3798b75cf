import type { CallerRule } from "../gen/caller/v1/caller_pb.ts";

/** Of senders whom nobody knows, in bytes. The longest that their protos let through has some 40,000, as JSON. */
export const ANONYMOUS_MAX_BYTES = 65_536;

/** How large a method's message may be, in bytes. */
export const messageLimit = (rule: CallerRule["rule"], messageMaxBytes: number): number =>
  rule.case === "anonymous" ? Math.min(ANONYMOUS_MAX_BYTES, messageMaxBytes) : messageMaxBytes;

/**
 * How binary messages are read: fields that our protos do not have are passed over, as in JSON. Each that is kept is three
 * objects, and a message of 4 MiB has room for two million.
 */
export const READ_OPTIONS = { readUnknownFields: false } as const;
