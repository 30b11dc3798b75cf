import {
  type DescMethod,
  type DescMethodServerStreaming,
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
import type { Log } from "../log.ts";
import type { Call } from "./call.ts";
import { longLists } from "./list-bounds.ts";
import type { CallMeter, CallType } from "./metrics.ts";
import { invalid } from "./refusal.ts";
import { brokenTimes } from "./times.ts";

/** What answers one RPC: with a message, or, once a stream can begin, with its messages, each made when it is asked for. */
type HandlerOf<Desc> =
  Desc extends DescMethodUnary<infer Input, infer Output>
    ? (request: MessageShape<Input>, call: Call) => Promise<MessageInitShape<Output>>
    : Desc extends DescMethodServerStreaming<infer Input, infer Output>
      ? (request: MessageShape<Input>, call: Call) => Promise<AsyncIterable<MessageInitShape<Output>>>
      : never;

/** What answers each RPC of a service. A forgotten one does not compile. */
export type Handlers<Service extends DescService> = {
  readonly [Name in keyof Service["method"]]: HandlerOf<Service["method"][Name]>;
};

/** A service with what answers it. */
interface Implementation {
  readonly service: DescService;
  readonly handlers: Readonly<Record<string, (request: never, call: Call) => Promise<unknown>>>;
}

export const implementation = <Service extends DescService>(
  service: Service,
  handlers: Handlers<Service>,
): Implementation => ({ service, handlers });

type Init = MessageInitShape<DescMethod["output"]>;

/** A method made ready at start, so that a call looks nothing up. */
export interface MethodOf<Answered> {
  readonly desc: DescMethod;
  /** `org.v1.OrgService/GetTenant` */
  readonly name: string;
  readonly rule: CallerRule["rule"];
  readonly handle: (request: Message, call: Call) => Promise<Answered>;
  readonly meter: CallMeter;
  /** Says the method's name on every line. */
  readonly log: Log;
  /** The tenant that a request names: "" where it names none, undefined where its message has no such field. */
  tenantOf(request: Message): string | undefined;
  /**
   * Holds a request to the rules of its proto.
   * @throws INVALID_REQUEST with every broken field
   */
  validate(request: Message): void;
}

/** A method that answers with one message. */
export interface UnaryMethod extends MethodOf<Init> {
  readonly type: "unary";
}

/** A method that answers with a stream of messages. */
export interface StreamMethod extends MethodOf<AsyncIterable<Init>> {
  readonly type: "server_stream";
}

export type Method = UnaryMethod | StreamMethod;

const TYPES: Partial<Record<DescMethod["methodKind"], CallType>> = {
  unary: "unary",
  server_streaming: "server_stream",
};

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

const validateOf = (desc: DescMethod): MethodOf<unknown>["validate"] => {
  const [longListsOf, timesOf] = [longLists(desc.input), brokenTimes(desc.input)];
  return (request) => {
    const long = longListsOf(request);
    if (long.length > 0) throw invalid(...long);
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
  meter: (type: CallType, service: string, method: string) => CallMeter,
  log: Log,
): readonly Method[] =>
  implementations.flatMap(({ service, handlers }) =>
    service.methods.map((desc): Method => {
      const name = `${service.typeName}/${desc.name}`;
      const handle = handlers[desc.localName];
      const type = TYPES[desc.methodKind];
      if (!handle || !type) throw new Error(`${name} has no handler`);
      const namesTenant = desc.input.fields.some((field) => field.name === "tenant_id");
      return {
        type,
        desc,
        name,
        rule: ruleOf(desc, name),
        handle: handle as never,
        meter: meter(type, service.typeName, desc.name),
        log: log.child({ rpc: name }),
        validate: validateOf(desc),
        tenantOf: (request) =>
          namesTenant ? ((request as Message & { tenantId?: string }).tenantId ?? "") : undefined,
      };
    }),
  );
