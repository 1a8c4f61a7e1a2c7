const WINDOW_MS = 30_000;

/**
 * How long a message takes each way, estimated from pings. The relay's clock in a `pong` splits the round trip in two, up
 * to a constant. The least of the last half minute is the path itself; what is above it is a queue on that way.
 */
export class Delay {
  up = null;
  down = null;

  #trip = new Least();
  #up = new Least();
  #down = new Least();

  /** A ping left at `sent` and its pong, which the relay sent at `relayTime`, came at `now`. */
  onPong(sent, now, relayTime) {
    const trip = now - sent;
    const path = this.#trip.of(now, trip);
    const queued = trip - path;
    // A clock that is set must not look like a queue: what the round trip does not have, no way has.
    const up = Math.min(queued, relayTime - sent - this.#up.of(now, relayTime - sent));
    const down = Math.min(queued, now - relayTime - this.#down.of(now, now - relayTime));
    this.up = path / 2 + up;
    this.down = path / 2 + down;
  }
}

/** The least of a window that slides by halves. */
class Least {
  #since = -Infinity;
  #before = Infinity;
  #least = Infinity;

  of(now, value) {
    if (now - this.#since > WINDOW_MS / 2) {
      this.#before = now - this.#since > WINDOW_MS ? Infinity : this.#least;
      this.#least = Infinity;
      this.#since = now;
    }
    this.#least = Math.min(this.#least, value);
    return Math.min(this.#before, this.#least);
  }
}
