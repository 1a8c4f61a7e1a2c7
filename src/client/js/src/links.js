import { QUEUE_MESSAGES } from "./outbox.js";

/** The first reliable stream id. */
export const RELIABLE = 0x80;

/**
 * The links of a connection: `next` is being opened, `current` was welcomed, `old` is what `current` replaced. While `old`
 * still brings its rest, reliable messages of `current` wait for it, and an older volatile frame never follows a newer one.
 */
export class Links {
  next = null;
  current = null;
  old = null;

  #waiting = [];
  #newerStreams = new Set();

  /** `next` was welcomed; `endOld` came before. */
  promote() {
    this.old = this.current;
    this.old?.linger();
    this.current = this.next;
    this.next = null;
  }

  /** May this volatile frame be delivered? */
  isFresh(link, streamId) {
    if (!this.old) return true;
    if (link !== this.old) this.#newerStreams.add(streamId);
    return link !== this.old || !this.#newerStreams.has(streamId);
  }

  /** Delivers what is reliable, now or in its turn. */
  inOrder(link, deliver) {
    if (link !== this.current || !this.old) return deliver();
    this.#waiting.push(deliver);
    // The hand-over ends, for too much waits.
    if (this.#waiting.length >= QUEUE_MESSAGES) this.endOld();
  }

  /** The old link is gone, or its time is over: what waited is in order now. */
  endOld() {
    this.old?.end();
    this.old = null;
    this.#newerStreams.clear();
    for (const deliver of this.#waiting.splice(0)) deliver();
  }

  endNext() {
    this.next?.end();
    this.next = null;
  }

  endAll() {
    this.endOld();
    this.endNext();
    this.current?.end();
    this.current = null;
  }
}
