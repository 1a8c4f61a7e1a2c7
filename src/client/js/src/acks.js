import { SendError } from "./errors.js";

/** What was sent with `ack: true` and waits for its answer. */
export class Acks {
  #waiting = new Map();
  #environment;

  constructor(environment) {
    this.#environment = environment;
  }

  /** Settles with `settle`, `fail`, `failAll`, or after `ms`. */
  wait(id, ms) {
    return new Promise((resolve, reject) => {
      const timer = this.#environment.setTimeout(
        () => this.fail(id, "timeout", `no answer within ${ms} ms: the other device may have it or not`), ms);
      this.#waiting.set(id, { resolve, reject, timer });
    });
  }

  has(id) {
    return this.#waiting.has(id);
  }

  settle(id) {
    this.#take(id)?.resolve();
  }

  fail(id, code, detail) {
    this.#take(id)?.reject(new SendError(code, detail));
  }

  failAll(code, detail) {
    for (const id of [...this.#waiting.keys()]) this.fail(id, code, detail);
  }

  #take(id) {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (waiting) this.#environment.clearTimeout(waiting.timer);
    return waiting;
  }
}
