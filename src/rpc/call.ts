import { TIMER_MAX_MS } from "../config-values.ts";
import type { Caller } from "./caller.ts";
import { type Reason, refusal } from "./refusal.ts";

/** What whoever waits for the database must know: when to stop waiting. */
export interface Waiting {
  /** Aborted with the Refusal to answer, when the caller cancels or the deadline passes. */
  readonly signal: AbortSignal;
  /** Milliseconds until the deadline, never negative. */
  remainingMs(): number;
}

/** For work that belongs to no call alone: bounded by the database's own limits. */
export const detached = (): Waiting => ({ signal: new AbortController().signal, remainingMs: () => Infinity });

/** A user for whom the calling service acts, proven by `x-actor-token`. */
export interface Actor {
  readonly userId: string;
  readonly tenantId: string;
}

/** One call, from its first header to its answer. Transports and the pipeline make it; handlers read it. */
export class Call implements Waiting {
  readonly requestId: string;
  readonly #deadline: number;
  #caller: Caller | undefined;
  #actor: Actor | undefined;
  #controller: AbortController | undefined;
  #ended: Error | undefined;
  #onEnd: ((reason: Error) => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  /** @param timeoutMs life of the call, by its caller's deadline or CALL_TIMEOUT; Infinity for a stream without either. */
  constructor(requestId: string, timeoutMs: number) {
    this.requestId = requestId;
    this.#deadline = performance.now() + timeoutMs;
    if (timeoutMs <= 0) this.#ended = refusal("DEADLINE");
    else if (timeoutMs !== Infinity)
      this.#timer = setTimeout(() => this.end("DEADLINE"), Math.min(timeoutMs, TIMER_MAX_MS));
  }

  /** The calling service. Handlers of anonymous methods must not ask for it. */
  get caller(): Caller {
    if (!this.#caller) throw new Error("an anonymous call has no caller");
    return this.#caller;
  }

  get callerIfAny(): Caller | undefined {
    return this.#caller;
  }

  get actor(): Actor | undefined {
    return this.#actor;
  }

  identify(caller: Caller, actor: Actor | undefined): void {
    this.#caller = caller;
    this.#actor = actor;
  }

  /** Made only when somebody asks: most calls are answered before anybody does. */
  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.#ended && !this.#controller.signal.aborted) this.#controller.abort(this.#ended);
    return this.#controller.signal;
  }

  remainingMs(): number {
    return Math.max(0, this.#deadline - performance.now());
  }

  /** Why the call was ended before it was answered, where it was. */
  get ended(): Error | undefined {
    return this.#ended;
  }

  /** Ends the wait for this call's answer, where there is one still: transports also say so of calls that are answered. */
  end(reason: Extract<Reason, "CANCELLED" | "DEADLINE"> | Error): void {
    if (this.#ended || this.#closed) return;
    this.#ended = reason instanceof Error ? reason : refusal(reason);
    this.#controller?.abort(this.#ended);
    this.#onEnd?.(this.#ended);
  }

  /** Settles as `work` does, or is rejected as soon as the call is cancelled or past its deadline. */
  outcome<T>(work: () => Promise<T>): Promise<T> {
    // Not an async function: one that returns a promise makes another, and waits for it twice.
    return new Promise<T>((resolve, reject) => {
      if (this.#ended) throw this.#ended;
      this.#onEnd = reject;
      work().then(resolve, reject);
    });
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#onEnd = undefined;
    this.#closed = true;
  }
}
