import type { Message } from "@bufbuild/protobuf";

/** A call's message, which its transport reads once its caller was let in. */
export class AwaitedMessage {
  readonly #coming = Promise.withResolvers<Message>();
  readonly #onAsked: () => void;
  #isThere = false;

  /** @param onAsked lets the transport read. */
  constructor(onAsked: () => void) {
    this.#onAsked = onAsked;
    // Nobody asks for the message of a call that is over.
    this.#coming.promise.catch(() => undefined);
  }

  get isThere(): boolean {
    return this.#isThere;
  }

  ask(): Promise<Message> {
    this.#onAsked();
    return this.#coming.promise;
  }

  deliver(message: Message): void {
    this.#isThere = true;
    this.#coming.resolve(message);
  }

  /** It cannot be read. */
  refuse(why: Error): void {
    this.#coming.reject(why);
  }
}
