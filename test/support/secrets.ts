import { type JsonValue, fromBinary, toJson } from "@bufbuild/protobuf";
import type { Known } from "./messages.ts";
import type { Rpc } from "./rpcs.ts";

/** The fields of requests and answers that only those may read who send or get them, by proto name. */
const SECRET_FIELDS = new Set([
  ...["secret", "service_token", "access_token", "refresh_token", "invite_token", "id_token"],
  ...["password", "current_password", "new_password", "code", "email", "phone", "destination", "display_name"],
]);

/** Six digits may stand in any longer number: as a code, they stand alone. */
const CODE = /(?<![\w.-])\d{6}(?![\w-])/g;

// What all secrets but the codes are longer than, and what they are looked for by.
const HEAD = 8;

const isId = (text: string) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text);

/** A credential is also given away by its random part, or its signature, alone. */
const partsOf = (text: string) => text.split(/[_.]/).filter((part) => part.length >= 30 && !isId(part));

const secretsIn = (json: JsonValue, name = ""): readonly string[] => {
  if (typeof json === "string") return SECRET_FIELDS.has(name) ? [json] : [];
  if (json === null || typeof json !== "object") return [];
  if (Array.isArray(json)) return json.flatMap((item) => secretsIn(item, name));
  return Object.entries(json).flatMap(([field, value]) => secretsIn(value, field));
};

/** The secret ones among values of requests' fields. */
export const secretsAmong = (known: Known) => Object.entries(known).filter(([name]) => SECRET_FIELDS.has(name));

/** Gathers what must stand nowhere while requests are made of it and answered with more. */
export const gatherSecrets = () => {
  const gathered = new Set<string>();
  const keep = (...texts: readonly string[]) => {
    for (const text of texts.flatMap((whole) => [whole, ...partsOf(whole)])) {
      if (text !== "") gathered.add(text).add(encodeURIComponent(text));
    }
  };
  return {
    keep,
    size: () => gathered.size,
    keepKnown(known: Known) {
      keep(...secretsAmong(known).flatMap(([, values]) => values));
    },
    keepAnswer({ method: { output } }: Rpc, body: Uint8Array) {
      keep(...secretsIn(toJson(output, fromBinary(output, body), { useProtoFieldName: true })));
    },
    /** Where each that stands in the text does so, in one pass: there are thousands to look for. */
    foundIn(text: string): readonly string[] {
      const byHead = Map.groupBy(gathered, (secret) => secret.slice(0, HEAD));
      const found = new Set([...text.matchAll(CODE)].filter(([code]) => gathered.has(code)).map(({ index }) => index));
      for (let at = 0; at < text.length; at++) {
        const candidates = byHead.get(text.slice(at, at + HEAD)) ?? [];
        if (candidates.some((secret) => text.startsWith(secret, at))) found.add(at);
      }
      return [...found].map((at) => text.slice(Math.max(0, at - 150), at + 150));
    },
  };
};
