import type { FieldMask } from "@bufbuild/protobuf/wkt";
import { invalid } from "./refusal.ts";

/** What an update may change, by proto name: the value sent, where "" or an empty list is one not sent. */
type Sent = Readonly<Record<string, unknown>>;

const isEmpty = (value: unknown) => value === undefined || value === "" || (Array.isArray(value) && value.length === 0);

/**
 * The fields that an update changes (AIP-134): those of the mask, all for `*`, and without a mask those that are sent.
 * @param required fields that cannot be cleared.
 * @throws INVALID_REQUEST for an unknown path, or a required field that the mask names and the request leaves empty.
 */
export const maskedFields = <Fields extends Sent>(
  mask: FieldMask | undefined,
  sent: Fields,
  required: readonly (keyof Fields & string)[],
): ReadonlySet<keyof Fields & string> => {
  const known = Object.keys(sent) as (keyof Fields & string)[];
  const paths = mask?.paths ?? [];
  if (paths.length === 0) return new Set(known.filter((name) => !isEmpty(sent[name])));
  const unknown = paths.filter((path) => path !== "*" && !known.includes(path));
  if (unknown.length > 0) {
    throw invalid({ field: "update_mask", description: `may only name ${known.join(", ")}` });
  }
  const fields = new Set(paths.includes("*") ? known : known.filter((name) => paths.includes(name)));
  const missing = required.filter((name) => fields.has(name) && isEmpty(sent[name]));
  if (missing.length > 0) {
    throw invalid(...missing.map((field) => ({ field, description: "must not be empty where the mask names it" })));
  }
  return fields;
};
