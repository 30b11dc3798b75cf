import type { DescField, DescMessage } from "@bufbuild/protobuf";
import { invalid } from "./refusal.ts";

type Json = Readonly<Record<string, unknown>>;

const isObject = (json: unknown): json is Json => typeof json === "object" && json !== null;

const isName = ({ enum: desc }: DescField, json: string): boolean =>
  desc?.values.some(({ name, jsonName }) => name === json || jsonName === json) ?? false;

const checkValue = (field: DescField, json: unknown, path: string): void => {
  if (Array.isArray(json)) json.forEach((item, index) => checkValue(field, item, `${path}[${index}]`));
  else if (field.message && isObject(json)) checkMessage(field.message, json, `${path}.`);
  else if (field.enum && typeof json === "string" && !isName(field, json))
    throw invalid({ field: path, description: "value must be one of the defined enum values" });
};

const checkMessage = (desc: DescMessage, json: Json, prefix: string): void => {
  for (const field of desc.fields) {
    for (const key of new Set([field.name, field.jsonName])) checkValue(field, json[key], prefix + field.name);
  }
};

const hasEnums = ({ fields }: DescMessage): boolean =>
  fields.some(({ enum: desc, message }) => desc !== undefined || (message !== undefined && hasEnums(message)));

/**
 * Reads the JSON of a message. To ignore unknown fields is also to ignore enum values of unknown names, by protobuf's rule,
 * and so a misspelled one would be a field that nobody set: such a name is refused, as an unknown number is.
 */
export class JsonText extends TextDecoder {
  readonly #desc: DescMessage | undefined;

  constructor(desc: DescMessage) {
    super("utf-8", { fatal: true });
    this.#desc = hasEnums(desc) ? desc : undefined;
  }

  /** @throws INVALID_REQUEST with the field that has an unknown name. */
  override decode(bytes: Uint8Array): string {
    const text = super.decode(bytes);
    const json: unknown = this.#desc && JSON.parse(text);
    if (this.#desc && isObject(json)) checkMessage(this.#desc, json, "");
    return text;
  }
}
