import type { Message } from "@bufbuild/protobuf";

/** Where a message comes from. */
export interface MessageSource {
  /** Has it read. */
  read(): void;
}

/** A call's message, which its transport reads once its caller was let in. */
export class AwaitedMessage {
  readonly #source: MessageSource;
  #isThere = false;
  #refused: Error | undefined;
  #resolve: ((message: Message) => void) | undefined;
  #reject: ((why: Error) => void) | undefined;

  constructor(source: MessageSource) {
    this.#source = source;
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
      this.#source.read();
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
