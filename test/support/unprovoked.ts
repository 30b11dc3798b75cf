import { transports } from "./channels.ts";
import { errorsOf } from "./comments.ts";
import { rpcs } from "./rpcs.ts";

/** What no call of a run has met: an RPC's answer over each transport, and each error of its comment over either. */
export const unprovoked = (noted: ReadonlySet<string>): readonly string[] =>
  rpcs.flatMap((rpc) => {
    const unanswered = transports.filter((transport) => !noted.has(`${rpc.name} ${transport} answered`));
    const isMissed = (reason: string) =>
      !transports.some((transport) => noted.has(`${rpc.name} ${transport} ${reason}`));
    return [
      ...unanswered.map((transport) => `an answer of ${rpc.name} over ${transport}`),
      ...errorsOf(rpc)
        .filter(isMissed)
        .map((reason) => `${reason} of ${rpc.name}`),
    ];
  });
