import type { Message } from "@bufbuild/protobuf";

/** A call's message, which its transport reads once its caller was let in. */
export class AwaitedMessage {
  readonly #read: () => void;
  #isThere = false;
  #refused: Error | undefined;
  #resolve: ((message: Message) => void) | undefined;
  #reject: ((why: Error) => void) | undefined;

  /** @param read has the transport read it. */
  constructor(read: () => void) {
    this.#read = read;
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
      this.#read();
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
