// A stream may change its path at any time, and the two paths overtake each other. Here is why no frame is delivered twice,
// and none after a newer one.
//
// On the direct path each frame has a number, which grows over all streams. On the relay's path it has none: the relay
// delivers frames unchanged. So the receiver needs to know which of the relay's frames are newer than the direct ones:
//
// 1. A direct frame puts its stream on the direct path. From then on a frame of that stream that comes by the relay
//    was sent before, and is stale.
// 2. When the sender goes back, it sends the stream's next frame by the relay and a ping behind it. The pong says that
//    the frame was handed on. Then the sender signals `back`.
// 3. The relay keeps at most one waiting frame of a stream, and a newer one takes its place. So when `back` reaches the
//    receiver, no frame of before the direct path can still be on its way: whatever the relay delivers from here on is newer.
//
// The receiver must know of the direct path before a stream leaves it again: a direct frame that comes after the relay's
// next one would look newer. So a sender waits until the first direct frame of a stream was reported, or has arrived, or
// never will.
//
// A `back` that is lost must not silence a stream: without a direct frame for a second, the relay's are believed again.
//
// Between 2 and 3 the receiver keeps the newest frame that came by the relay. `back` has a print of the frame that was
// sent first. If it is the one kept, it is delivered then. So a slow stream loses nothing.

/** FNV-1a, 32 bits. */
export function printOf(bytes) {
  let print = 0x811c9dc5;
  for (const byte of bytes) print = Math.imul(print ^ byte, 0x01000193);
  return print >>> 0;
}

/** How long after the last direct frame of a stream the relay's are believed without a `back`, in milliseconds. */
const BELIEVED_AFTER = 1_000;

/** The receiver's side: may this frame be delivered? */
export class Arrivals {
  #streams = new Map();

  /** A direct frame. */
  fromDirect(now, streamId, number) {
    const stream = this.#streams.get(streamId);
    if (stream && number <= stream.number) return false;
    this.#streams.set(streamId, { number, at: now, isDirect: true, kept: null });
    return true;
  }

  /** A frame that came by the relay. */
  fromRelay(now, streamId, bytes) {
    const stream = this.#streams.get(streamId);
    if (!stream?.isDirect) return true;
    stream.kept = null;
    if (now - stream.at >= BELIEVED_AFTER) {
      stream.isDirect = false;
      return true;
    }
    stream.kept = bytes;
    return false;
  }

  /** Is the newest frame of this stream one that came direct? */
  isDirect(streamId) {
    return this.#streams.get(streamId)?.isDirect ?? false;
  }

  /** The sender has gone back to the relay; `number` was its last direct frame. The frame to deliver now, or null. */
  back(streamId, number, print) {
    const stream = this.#streams.get(streamId);
    if (!stream) {
      // Every direct frame was lost, or is late and stale.
      this.#streams.set(streamId, { number, at: -Infinity, isDirect: false, kept: null });
      return null;
    }
    if (!stream.isDirect || number < stream.number) return null; // it is on the direct path once more
    const { kept } = stream;
    Object.assign(stream, { number, isDirect: false, kept: null });
    return kept !== null && printOf(kept) === print ? kept : null;
  }
}

/** The sender's side: which streams owe the receiver a `back`. */
export class Departures {
  #streams = new Map(); // stream: { first, last, at } of its direct frames since it last was back
  #crossing = new Map(); // stream: { ping, number, print } until the pong
  #read = 0;

  sentDirect(now, streamId, number) {
    const stream = this.#streams.get(streamId);
    this.#streams.set(streamId, { first: stream?.first ?? number, last: number, at: now });
    this.#crossing.delete(streamId);
  }

  /** The receiver has read direct frames up to this number. */
  onRead(number) {
    this.#read = Math.max(this.#read, number);
  }

  /** From when on frames may go by the relay again: the receiver knows of the direct path then, or never will. */
  settledAt(settle) {
    let at = -Infinity;
    for (const [streamId, { first, at: sentAt }] of this.#streams) {
      if (first > this.#read && !this.#crossing.has(streamId)) at = Math.max(at, sentAt + settle);
    }
    return at;
  }

  /** Does the receiver believe that this stream is on the direct path, and nothing is under way to correct it? */
  owesBack(streamId) {
    return this.#streams.has(streamId) && !this.#crossing.has(streamId);
  }

  /** Its first frame by the relay has left, and the ping `ping` behind it. */
  sentByRelay(streamId, bytes, ping) {
    this.#crossing.set(streamId, { ping, number: this.#streams.get(streamId).last, print: printOf(bytes) });
  }

  /** The relay has answered this ping: `[stream, number, print]` of each stream that is back. */
  onPong(ping) {
    const back = [];
    for (const [streamId, crossing] of this.#crossing) {
      if (crossing.ping > ping) continue;
      back.push([streamId, crossing.number, crossing.print]);
      this.#crossing.delete(streamId);
      this.#streams.delete(streamId);
    }
    return back;
  }
}
