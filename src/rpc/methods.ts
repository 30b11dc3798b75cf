import {
  type DescMethod,
  type DescMethodUnary,
  type DescService,
  type Message,
  type MessageInitShape,
  type MessageShape,
  getOption,
  hasOption,
} from "@bufbuild/protobuf";
import { pathToString } from "@bufbuild/protobuf/reflect";
import { createValidator } from "@bufbuild/protovalidate";
import { type CallerRule, caller_rule } from "../gen/caller/v1/caller_pb.ts";
import type { Call } from "./call.ts";
import type { CallMeter } from "./metrics.ts";
import { invalid } from "./refusal.ts";
import { brokenTimes } from "./times.ts";

/** What answers each RPC of a service. A forgotten one does not compile. */
export type Handlers<Service extends DescService> = {
  readonly [Name in keyof Service["method"]]: Service["method"][Name] extends DescMethodUnary<infer Input, infer Output>
    ? (request: MessageShape<Input>, call: Call) => Promise<MessageInitShape<Output>>
    : never;
};

/** A service with what answers it. */
export interface Implementation {
  readonly service: DescService;
  readonly handlers: Readonly<Record<string, (request: never, call: Call) => Promise<unknown>>>;
}

export const implementation = <Service extends DescService>(
  service: Service,
  handlers: Handlers<Service>,
): Implementation => ({ service, handlers });

/** A method made ready at start, so that a call looks nothing up. */
export interface Method {
  readonly desc: DescMethod;
  /** `org.v1.OrgService/GetTenant` */
  readonly name: string;
  readonly rule: CallerRule["rule"];
  readonly handle: (request: Message, call: Call) => Promise<MessageInitShape<DescMethod["output"]>>;
  readonly meter: CallMeter;
  /** The tenant that a request names: "" where it names none, undefined where its message has no such field. */
  tenantOf(request: Message): string | undefined;
  /**
   * Holds a request to the rules of its proto.
   * @throws INVALID_REQUEST with every broken field
   */
  validate(request: Message): void;
}

const PERMISSION = /^[a-z0-9_]+(\.[a-z0-9_]+)*$/;

/** Deny by default: a method that says nothing of its callers ends the start. */
const ruleOf = (desc: DescMethod, name: string): CallerRule["rule"] => {
  const rule = hasOption(desc, caller_rule) ? getOption(desc, caller_rule).rule : undefined;
  const named = rule?.case === "permission" ? PERMISSION.test(rule.value) : rule?.value === true;
  if (!rule || !named)
    throw new Error(`${name} does not say who may call it: it needs the option caller.v1.caller_rule`);
  return rule;
};

const patterns = new Map<string, RegExp>();
const validator = createValidator({
  // The protos' patterns are our own and linear; the default RE2 in JavaScript is ten times slower.
  regexMatch(pattern, against) {
    let regex = patterns.get(pattern);
    if (!regex) patterns.set(pattern, (regex = new RegExp(pattern, "u")));
    return regex.test(against);
  },
});

const validateOf = (desc: DescMethod): Method["validate"] => {
  const timesOf = brokenTimes(desc.input);
  return (request) => {
    const result = validator.validate(desc.input, request);
    if (result.kind === "error") throw result.error;
    const times = timesOf(request);
    if (result.kind === "valid" && times.length === 0) return;
    const violations = result.kind === "invalid" ? result.violations : [];
    const broken = violations.map(({ field, message }) => ({ field: pathToString(field), description: message }));
    throw invalid(...broken, ...times);
  };
};

/** Every method of the services, with its rule checked. */
export const bindMethods = (
  implementations: readonly Implementation[],
  meter: (service: string, method: string) => CallMeter,
): readonly Method[] =>
  implementations.flatMap(({ service, handlers }) =>
    service.methods.map((desc) => {
      const name = `${service.typeName}/${desc.name}`;
      const handle = handlers[desc.localName];
      if (!handle || desc.methodKind !== "unary") throw new Error(`${name} has no handler`);
      const namesTenant = desc.input.fields.some((field) => field.name === "tenant_id");
      return {
        desc,
        name,
        rule: ruleOf(desc, name),
        handle: handle as Method["handle"],
        meter: meter(service.typeName, desc.name),
        validate: validateOf(desc),
        tenantOf: (request) =>
          namesTenant ? ((request as Message & { tenantId?: string }).tenantId ?? "") : undefined,
      };
    }),
  );
