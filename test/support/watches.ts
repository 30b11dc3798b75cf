import type { MessageInitShape } from "@bufbuild/protobuf";
import type { AuditEvent, WatchAuditEventsRequestSchema } from "../../src/gen/org/v1/org_pb.ts";
import type { Clients } from "./service.ts";

type Options = Parameters<Clients["org"]["watchAuditEvents"]>[1];

/** A watch that has begun: its first event has come, and its end is awaited. */
export const beginWatch = async (
  { org }: Pick<Clients, "org">,
  request: MessageInitShape<typeof WatchAuditEventsRequestSchema>,
  options: Options = {},
) => {
  const heard: AuditEvent[] = [];
  const began = Promise.withResolvers<undefined>();
  const watch = async () => {
    for await (const { event } of org.watchAuditEvents(request, options)) {
      heard.push(event!);
      began.resolve(undefined);
    }
  };
  const ended = watch();
  ended.catch(() => undefined);
  await Promise.race([began.promise, ended]);
  return { heard, ended };
};
