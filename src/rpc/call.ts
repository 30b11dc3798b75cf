import { TIMER_MAX_MS } from "../config-values.ts";
import type { Caller } from "./caller.ts";
import { type Reason, refusal } from "./refusal.ts";

/** What whoever waits for something must know: when to stop waiting. */
export interface Waiting {
  /** Aborted with the Refusal to answer, when the caller cancels or the deadline passes: for what takes a signal only. */
  readonly signal: AbortSignal;
  /** Throws that Refusal where the wait is over already. */
  throwIfOver(): void;
  /**
   * Calls `listener` once with that Refusal when the wait ends, at once where it has; answers with what takes it back.
   * At a fifth of the cost of a signal's listener.
   */
  whenOver(listener: (reason: unknown) => void): () => void;
  /** Milliseconds until the deadline, never negative. */
  remainingMs(): number;
}

const nothing = () => undefined;

/** A wait that ends when the signal does. */
export const waitingUntil = (signal: AbortSignal, remainingMs = () => Infinity): Waiting => ({
  signal,
  throwIfOver: () => signal.throwIfAborted(),
  whenOver(listener) {
    if (signal.aborted) {
      listener(signal.reason);
      return nothing;
    }
    const abort = () => listener(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    return () => signal.removeEventListener("abort", abort);
  },
  remainingMs,
});

/** A wait of so many milliseconds. */
export const waitingFor = (ms: number): Waiting => waitingUntil(AbortSignal.timeout(ms), () => ms);

/** For work that belongs to no call alone: bounded by the database's own limits. */
export const detached = (): Waiting => ({
  signal: new AbortController().signal,
  throwIfOver: nothing,
  whenOver: () => nothing,
  remainingMs: () => Infinity,
});

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
  #listeners: Set<(reason: unknown) => void> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;
  readonly #onOver: (() => void) | undefined;

  /**
   * @param timeoutMs life of the call, by its caller's deadline or CALL_TIMEOUT; Infinity for a stream without either.
   * @param onOver told when nobody waits for its answer any more: of one that ended early, again when its work is over.
   */
  constructor(requestId: string, timeoutMs: number, onOver?: () => void) {
    this.requestId = requestId;
    this.#onOver = onOver;
    this.#deadline = performance.now() + timeoutMs;
    if (timeoutMs <= 0) this.#ended = refusal("DEADLINE");
    else if (timeoutMs !== Infinity)
      this.#timer = setTimeout(() => void this.end("DEADLINE"), Math.min(timeoutMs, TIMER_MAX_MS));
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

  throwIfOver(): void {
    if (this.#ended) throw this.#ended;
  }

  whenOver(listener: (reason: unknown) => void): () => void {
    if (this.#ended) {
      listener(this.#ended);
      return nothing;
    }
    const listeners = (this.#listeners ??= new Set());
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  remainingMs(): number {
    return Math.max(0, this.#deadline - performance.now());
  }

  /** Why the call was ended before it was answered, where it was. */
  get ended(): Error | undefined {
    return this.#ended;
  }

  /**
   * Ends the wait for this call's answer, where there is one still: transports also say so of calls that are answered.
   * @returns whether there was.
   */
  end(reason: Extract<Reason, "CANCELLED" | "DEADLINE"> | Error): boolean {
    if (this.#ended || this.#closed) return false;
    this.#ended = reason instanceof Error ? reason : refusal(reason);
    this.#controller?.abort(this.#ended);
    for (const listener of this.#listeners ?? []) listener(this.#ended);
    this.#onEnd?.(this.#ended);
    this.#onOver?.();
    return true;
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
    this.#onOver?.();
  }
}
