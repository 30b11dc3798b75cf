import { type ServerHttp2Stream, constants } from "node:http2";
import { TIMER_MAX_MS } from "../config-values.ts";

/** How many times as long the answer may take of whose taking nothing can be seen. */
const UNSEEN = 10;

/**
 * Gives up an answer that is whole where nobody takes anything of it for so long. Node sees only that something goes on in
 * its connection, which may be other calls for ever: all of it must be taken in ten times as long.
 */
export const giveUpUntaken = (stream: ServerHttp2Stream, limitMs: number): void => {
  // Of what has closed nothing would tell again: its timer would last.
  if (stream.destroyed) return;
  const giveUp = () => stream.close(constants.NGHTTP2_CANCEL);
  stream.setTimeout(limitMs, giveUp);
  const late = setTimeout(giveUp, Math.min(UNSEEN * limitMs, TIMER_MAX_MS)).unref();
  stream.once("close", () => clearTimeout(late));
};
