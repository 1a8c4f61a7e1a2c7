/** A little under the relay's own limits: its clock and ours differ, and messages arrive in bunches. */
const SHARE = 0.95;
const BURST_SHARE = 0.9;

/** What one connection may send without being throttled: the relay's token buckets, from `welcome.limits`. */
export class Budget {
  #messages;
  #bytes;

  constructor({ messages_per_second, bytes_per_second }, now) {
    this.#messages = new Bucket(messages_per_second, 1, now);
    this.#bytes = new Bucket(bytes_per_second, 4, now);
  }

  /** Milliseconds until a message of `size` bytes may leave. */
  wait(now, size) {
    return Math.max(this.#messages.wait(now, 1), this.#bytes.wait(now, size));
  }

  spend(now, size) {
    this.#messages.spend(now, 1);
    this.#bytes.spend(now, size);
  }
}

class Bucket {
  #perMs;
  #most;
  #level;
  #at;

  /** No rate, or 0, is no limit. `burst` is in seconds of the rate. */
  constructor(rate, burst, now) {
    this.#perMs = rate > 0 ? (rate * SHARE) / 1000 : Infinity;
    this.#most = this.#level = rate > 0 ? rate * burst * BURST_SHARE : Infinity;
    this.#at = now;
  }

  wait(now, amount) {
    if (this.#most === Infinity) return 0;
    this.#fill(now);
    return Math.max(0, (Math.min(amount, this.#most) - this.#level) / this.#perMs);
  }

  spend(now, amount) {
    if (this.#most === Infinity) return;
    this.#fill(now);
    this.#level -= amount;
  }

  #fill(now) {
    this.#level = Math.min(this.#most, this.#level + (now - this.#at) * this.#perMs);
    this.#at = now;
  }
}
