import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import mustache from "mustache";
import { type PurposeCode, otpPurpose } from "../auth/otp-codes.ts";
import { type Config, ConfigError } from "../config.ts";
import { oneLine } from "../one-line.ts";
import { WITHOUT_WAITING } from "../without-waiting.ts";

const OWN_DIR = fileURLToPath(new URL("templates/", import.meta.url));
const PARTS = ["subject", "text", "html", "sms"] as const;
type Part = (typeof PARTS)[number];

/** What a template may name. */
interface Variables {
  /** Six digits. */
  readonly code: string;
  /** How long the code is valid from now. */
  readonly minutes: number;
  /** The tenant's label. */
  readonly tenant: string;
}

export interface Templates {
  render(purpose: PurposeCode, variables: Variables): Readonly<Record<Part, string>>;
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** @throws TypeError of bytes that are no UTF-8: every message would be damaged. */
const readTemplate = (file: string) => utf8.decode(readFileSync(file, { flag: WITHOUT_WAITING }));

const namesCode = (template: string) =>
  mustache.parse(template).some(([kind, name]) => (kind === "name" || kind === "&") && name === "code");

const faultOf = (template: string, part: Part): string | undefined => {
  try {
    return part === "subject" || namesCode(template) ? undefined : "must contain {{code}}";
  } catch {
    return "is no mustache template";
  }
};

/**
 * Reads `<folder>/<locale>/<purpose>.{subject,text,html,sms}.mustache` of every purpose.
 *
 * @throws ConfigError that names each file that is missing or of no use, after the variable to change.
 */
export const loadTemplates = ({ templatesDir, locale }: Config["delivery"]): Templates => {
  const variable = templatesDir === undefined ? "MESSAGE_LOCALE" : "MESSAGE_TEMPLATES_DIR";
  const faults: string[] = [];
  const texts = new Map<string, string>();
  for (const name of otpPurpose.options.flatMap((purpose) => PARTS.map((part) => [purpose, part] as const))) {
    const file = `${locale}/${name.join(".")}.mustache`;
    try {
      const template = readTemplate(join(templatesDir ?? OWN_DIR, file));
      const fault = faultOf(template, name[1]);
      if (fault !== undefined) faults.push(`${variable}: ${file} ${fault}`);
      texts.set(name.join("."), template);
    } catch (error) {
      const why =
        error instanceof TypeError
          ? "is no UTF-8"
          : `cannot be read (${(error as NodeJS.ErrnoException).code ?? "error"})`;
      faults.push(`${variable}: ${file} ${why}`);
    }
  }
  if (faults.length > 0) throw new ConfigError(faults);

  const plain = { escape: (text: string) => text };
  const renderPart = (purpose: PurposeCode, part: Part, variables: Variables) =>
    mustache.render(texts.get(`${purpose}.${part}`) ?? "", variables, {}, part === "html" ? {} : plain);
  return {
    render(purpose, given) {
      // With lines of its own a label would be more than a name: what it says would be read as what we say.
      const variables = { ...given, tenant: oneLine(given.tenant) };
      return {
        subject: oneLine(renderPart(purpose, "subject", variables)),
        text: renderPart(purpose, "text", variables),
        html: renderPart(purpose, "html", variables),
        // An SMS is one line by custom.
        sms: oneLine(renderPart(purpose, "sms", variables)),
      };
    },
  };
};
