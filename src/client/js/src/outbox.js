import { SendError } from "./errors.js";

/** Few enough to pass the relay's rate limit (240 a second, ten seconds of patience) when all are sent at once. */
export const QUEUE_MESSAGES = 1000;

/**
 * What waits to be sent: the newest volatile frame of each stream, and reliable messages in their order. The two lanes
 * take turns, so that neither a busy stream nor a long queue starves the other.
 */
export class Outbox {
  dropped = 0;
  bytes = 0;

  #volatile = new Map();
  #reliable = [];
  #volatileTurn = true;
  #limit;

  constructor(limit) {
    this.#limit = limit;
  }

  get length() {
    return this.#reliable.length;
  }

  /** The newer frame takes the older one's place in the line, so that no stream starves another. */
  putVolatile(streamId, message) {
    if (this.#volatile.has(streamId)) this.dropped += 1;
    this.#volatile.set(streamId, message);
  }

  /** @throws {SendError} `queue_full` */
  putReliable(entry) {
    if (this.#reliable.length >= QUEUE_MESSAGES || this.bytes + entry.size > this.#limit) {
      throw new SendError("queue_full", "too many reliable messages wait to be sent: wait for drained()");
    }
    this.#push(entry);
  }

  /** An answer that the other device waits for: bounded by what it sent, and not by what this side queued. */
  putAnswer(entry) {
    if (this.#reliable.length < 2 * QUEUE_MESSAGES) this.#push(entry);
  }

  /** Is there room for what drained() waits for? */
  get isDrained() {
    return this.#reliable.length <= QUEUE_MESSAGES / 2 && this.bytes <= this.#limit / 2;
  }

  /**
   * The next thing to send, or `{ wait }`: ask again in so many ms, at the latest. `volatileWait(size)` and
   * `reliableWait(size)` return how long a message of each lane has to wait now.
   */
  take(volatileWait, reliableWait) {
    const [streamId, frame] = this.#volatile.entries().next().value ?? [];
    const entry = this.#reliable[0];
    const forFrame = frame ? volatileWait(frame.length) : Infinity;
    if (frame && this.#volatileTurn && forFrame > 0) {
      // A reliable message now would take the room that the frame waits for.
      return { wait: forFrame };
    }
    const forEntry = entry ? reliableWait(entry.size) : Infinity;
    if (forFrame <= 0 && (this.#volatileTurn || forEntry > 0)) {
      this.#volatileTurn = !entry;
      this.#volatile.delete(streamId);
      return { frame };
    }
    if (forEntry <= 0) {
      this.#volatileTurn = true;
      this.#reliable.shift();
      this.bytes -= entry.size;
      return { entry };
    }
    return { wait: Math.min(forFrame, forEntry) };
  }

  dropVolatile() {
    this.dropped += this.#volatile.size;
    this.#volatile.clear();
  }

  /** Empties the reliable lane; what was in it. */
  dropReliable() {
    this.bytes = 0;
    return this.#reliable.splice(0);
  }

  #push(entry) {
    this.#reliable.push(entry);
    this.bytes += entry.size;
  }
}
