import { setTimeout as sleep } from "node:timers/promises";
import { TIMER_MAX_MS } from "./config-values.ts";

/** A timer that is later than this tells of an event loop that was held up, in milliseconds. */
const HELD_UP_MS = 100;

/**
 * Calls `fire` once an answer was left out for so many milliseconds. The time in which our own event loop was held up says
 * nothing of who should answer: the wait begins anew then, once, and what has come in by its end is read first, which
 * Node does after its timers.
 * @returns what takes it back.
 */
export const afterSilence = (limitMs: number, fire: () => void): (() => void) => {
  const ms = Math.min(limitMs, TIMER_MAX_MS);
  let timer: NodeJS.Timeout | undefined;
  let immediate: NodeJS.Immediate | undefined;
  const wait = (isLast: boolean) => {
    const due = performance.now() + ms;
    timer = setTimeout(() => {
      if (!isLast && performance.now() - due > HELD_UP_MS) wait(true);
      else immediate = setImmediate(fire);
    }, ms);
  };
  wait(false);
  return () => {
    clearTimeout(timer);
    clearImmediate(immediate);
  };
};

/** Whether `work` ended within so many milliseconds; it goes on where it did not. @throws what it fails with by then. */
export const endedWithin = async (limitMs: number, work: Promise<unknown>): Promise<boolean> => {
  const over = new AbortController();
  const late = sleep(Math.min(limitMs, TIMER_MAX_MS), false, { signal: over.signal }).catch(() => false);
  try {
    return await Promise.race([work.then(() => true), late]);
  } finally {
    over.abort();
  }
};

/** What is looked at now and then for as long as it is in there. */
export interface LookedAt<Member> {
  readonly add: (member: Member) => void;
  readonly delete: (member: Member) => void;
}

/**
 * Looks at each member every so many milliseconds, by one timer for all. It stands only while there are some: a server that
 * is no more leaves none.
 */
export const lookNowAndThen = <Member>(everyMs: number, look: (member: Member) => void): LookedAt<Member> => {
  const members = new Set<Member>();
  let timer: NodeJS.Timeout | undefined;
  const lookLater = () => {
    timer ??= setTimeout(lookAtAll, everyMs).unref();
  };
  const lookAtAll = () => {
    for (const member of members) look(member);
    timer = undefined;
    if (members.size > 0) lookLater();
  };
  return {
    add(member) {
      members.add(member);
      lookLater();
    },
    delete: (member) => void members.delete(member),
  };
};
