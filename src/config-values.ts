import { isIPv6 } from "node:net";
import { z } from "zod";

const UNITS_MS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;
/** What a timer can hold, 24 days; beyond it Node fires at once. */
export const TIMER_MAX_MS = 2 ** 31 - 1;

/**
 * The most that argon2 and scrypt may cost, about a second of one core: an import is no way to make us work for minutes.
 * Our own parameters keep to it too, or no password that they hashed would ever be right.
 */
export const HASH_COST_MAX = { memoryKib: 262_144, memoryPassesKib: 1_048_576, parallelism: 16 } as const;

const durationText = (text: string, context: z.RefinementCtx) => {
  const [, amount, unit] = /^(\d{1,12})(ms|s|m|h|d)$/.exec(text) ?? [];
  if (amount && unit) return Number(amount) * UNITS_MS[unit as keyof typeof UNITS_MS];
  context.addIssue({ code: "custom", message: "must be a duration such as 250ms, 10s, 15m, 24h or 30d" });
  return z.NEVER;
};
/** Milliseconds; bounded by what a timer can hold unless a larger `max` is named. */
export const duration = (min: number, max = TIMER_MAX_MS) =>
  z
    .string()
    .transform(durationText)
    .pipe(z.number().min(min, `must be at least ${min}ms`).max(max, `must be at most ${max}ms`));
/** A whole number within bounds, both included. */
export const integer = (min: number, max: number) =>
  z
    .string()
    .regex(/^\d{1,10}$/, `must be a whole number from ${min} to ${max}`)
    .transform(Number)
    .pipe(z.number().min(min, `must be at least ${min}`).max(max, `must be at most ${max}`));
export const flag = z.enum(["on", "off"], "must be on or off").transform((value) => value === "on");

// 43 letters of base64 are 32 bytes.
const pepper = z
  .string()
  .regex(/^[1-9]\d{0,8}:[A-Za-z0-9+/]{43,}={0,2}$/)
  .transform((text) => {
    const [version, key] = text.split(":", 2) as [string, string];
    return { version: Number(version), key: Buffer.from(key, "base64") };
  });
export const peppers = z
  .string()
  .transform((text) => z.array(pepper).safeParse(text.split(",").map((part) => part.trim())))
  .refine(
    ({ success, data }) => success && new Set(data.map((p) => p.version)).size === data.length,
    "must be version:base64 pairs with distinct versions, each key of 32 bytes or more, such as 1:…,2:…",
  )
  .transform(({ data }) => data ?? []);

/** A key for HMACs; `version` stands beside each hash, so that a pepper can be replaced while old hashes still verify. */
export type Pepper = z.output<typeof pepper>;

/** Whoever connects by a URL decodes its parts, and fails at a `%` that is one of a password's own. */
const isUrl = (text: string): boolean => {
  try {
    decodeURIComponent(text);
  } catch {
    return false;
  }
  return URL.canParse(text);
};

/** How a URL says the folder of a socket together with a user or a port. */
export const SOCKET_URL = "postgresql://app@%2Frun%2Fpostgresql:5432/app";

export const postgresUrl = z
  .string()
  // libpq takes it, which finds the folder behind the ?.
  .refine((text) => !/^postgres(ql)?:\/\/([^/?#]*@(:\d*)?|:\d+)([/?]|$)/.test(text), {
    message: `must name a host before the database; a socket's folder so: ${SOCKET_URL}`,
    abort: true,
  })
  .refine(
    // Behind a # nobody reads on: one in a password would name another host, or none.
    (text) => /^postgres(ql)?:\/\/[^#]*$/.test(text) && isUrl(text),
    "must be a postgresql:// URL, with %25 for a % of its password, %23 for a # and %2F for a /",
  );
/** A name or an address to listen on; IPv6 with or without its brackets. */
export const host = z.string().transform((text) => text.replace(/^\[(.+)\]$/, "$1"));
/** Values separated by commas, without those that are empty. */
export const commaSeparated = z.string().transform((text) =>
  text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== ""),
);
/** Of other schemes, such as those of apps, `URL` knows no origin. */
const isOrigin = (text: string): boolean =>
  /^https?:/.test(text)
    ? !text.includes("*") && URL.parse(text)?.origin === text
    : /^[a-z][a-z0-9+.-]*:\/\/[^\s/?#]+$/.test(text);

/** As browsers name them: what is spelt otherwise, such as with a slash behind it, would be nobody's. */
export const origins = commaSeparated.refine(
  (all) => all.every(isOrigin),
  "must be origins such as https://app.example.com, with nothing behind the host and port",
);
/** A URL of one of these schemes, such as `https`. */
export const urlOf = (...schemes: readonly string[]) =>
  z.string().refine((text) => isUrl(text) && schemes.some((scheme) => new URL(text).protocol === `${scheme}:`), {
    message: `must be a URL that begins with ${schemes.map((scheme) => `${scheme}://`).join(" or ")}`,
    abort: true,
  });

/** What of a connection to a mail server its URL may say; of nodemailer's others, some would write messages to the log. */
const SMTP_OPTION =
  /^(requireTLS|ignoreTLS|opportunisticTLS|name|localAddress|authMethod|tls\.(rejectUnauthorized|servername|minVersion))$/;

/** Of these anything but `false` would be a yes: `ignoreTLS=no` would send the password in the clear. */
const SMTP_FLAG = /TLS$|\.rejectUnauthorized$/;

const isSmtpUrl = (text: string): boolean => {
  const { hostname, searchParams } = new URL(text);
  return hostname !== "" && [...searchParams.keys()].every((option) => SMTP_OPTION.test(option));
};
const hasPlainFlags = (text: string): boolean =>
  [...new URL(text).searchParams].every(([option, value]) => !SMTP_FLAG.test(option) || /^(true|false)$/.test(value));

/** The URL of a mail server. An option that is not known, however it is misspelt, would not be heeded. */
export const smtpUrl = urlOf("smtp", "smtps")
  .refine(isSmtpUrl, {
    message:
      "must name a host, and no options but requireTLS, ignoreTLS, opportunisticTLS, name, localAddress, authMethod, " +
      "tls.rejectUnauthorized, tls.servername and tls.minVersion, spelt so",
    abort: true,
  })
  .refine(hasPlainFlags, "must say true or false by its options on TLS");

/** As a URL or gRPC's target names it. */
export const addressText = (hostName: string, port: number): string =>
  isIPv6(hostName) ? `[${hostName}]:${port}` : `${hostName}:${port}`;

const address = z.email({ pattern: z.regexes.html5Email }).max(254);

/** Whom mails come from: an address alone, or a name and the address in angle brackets. */
export const mailbox = z.string().transform((text, context) => {
  const {
    name = "",
    within,
    alone,
  } = /^(?:(?<name>[^<>]*)<(?<within>[^<>]+)>|(?<alone>[^<>]+))$/.exec(text)?.groups ?? {};
  const { data } = address.safeParse(within ?? alone);
  if (data !== undefined && !/\p{Cc}/u.test(name)) {
    // Of a quoted name, what is within the quotes.
    return { name: name.trim().replace(/^"(.*)"$/, "$1"), address: data };
  }
  context.addIssue({ code: "custom", message: "must be an e-mail address, such as Example <no-reply@example.org>" });
  return z.NEVER;
});
