import type { Message } from "@bufbuild/protobuf";

/** A call's message, which its transport reads once its caller was let in. */
export class AwaitedMessage {
  readonly #onAsked: () => void;
  #isThere = false;
  #refused: Error | undefined;
  #resolve: ((message: Message) => void) | undefined;
  #reject: ((why: Error) => void) | undefined;

  /** @param onAsked lets the transport read. */
  constructor(onAsked: () => void) {
    this.#onAsked = onAsked;
  }

  get isThere(): boolean {
    return this.#isThere;
  }

  /** Asked once, before it is delivered. */
  ask(): Promise<Message> {
    return new Promise((resolve, reject) => {
      if (this.#refused) return reject(this.#refused);
      this.#resolve = resolve;
      this.#reject = reject;
      this.#onAsked();
    });
  }

  deliver(message: Message): void {
    this.#isThere = true;
    this.#resolve?.(message);
  }

  /** It cannot be read. */
  refuse(why: Error): void {
    this.#refused = why;
    this.#reject?.(why);
  }
}
