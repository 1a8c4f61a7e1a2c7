import { QUEUE_MESSAGES } from "./outbox.js";

/** The first reliable stream id. */
export const RELIABLE = 0x80;

/**
 * What arrives during a hand-over, when the old link still brings its rest: reliable messages of the new link wait for it,
 * and an older volatile frame never follows a newer one.
 */
export class Inbox {
  #waiting = [];
  #newerStreams = new Set();

  /** True: the caller must end the hand-over, for too much waits. */
  get isFull() {
    return this.#waiting.length >= QUEUE_MESSAGES;
  }

  hold(deliver) {
    this.#waiting.push(deliver);
  }

  /** May this volatile frame be delivered? `from` is "old" or "new". */
  isFresh(streamId, from) {
    if (from === "new") this.#newerStreams.add(streamId);
    return from === "new" || !this.#newerStreams.has(streamId);
  }

  /** The old link is gone: what waited is in order now. */
  release() {
    this.#newerStreams.clear();
    for (const deliver of this.#waiting.splice(0)) deliver();
  }
}
