import { Acks } from "./acks.js";
import { randomHex } from "./environment.js";
import { SendError } from "./errors.js";
import { utf8 } from "./identity.js";
import { RELIABLE } from "./links.js";
import { Outbox } from "./outbox.js";

/** Ids must be unique over all clients and time: 96 random bits for each start, then a counter. */
let start;
let counter = 0;

/**
 * Takes what the app sends, and hands it to the link of the moment as fast as that may take it. `owner.route()` is
 * `{ link, path, held }`: reliable messages go to `link`, unless they are `held`; volatile frames go to `path`, which is
 * anything with `volatileWait(size)` and `sendVolatile(message)`.
 */
export class Sender {
  messageBytes = 65_536; // until the relay says more

  #env;
  #timing;
  #owner;
  #outbox;
  #acks;
  #timer = null;
  #drained = [];
  #pressureUntil = 0;

  constructor(env, timing, queueBytes, owner) {
    this.#env = env;
    this.#timing = timing;
    this.#owner = owner;
    this.#outbox = new Outbox(queueBytes);
    this.#acks = new Acks(env);
  }

  get dropped() { return this.#outbox.dropped; }
  get queued() { return this.#outbox.bytes; }

  frame(streamId, bytes) {
    if (!Number.isInteger(streamId) || streamId < 0 || streamId > 0xff) throw new RangeError(`stream id out of range: ${streamId}`);
    const payload = ArrayBuffer.isView(bytes) ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength) : new Uint8Array(bytes);
    const message = new Uint8Array(1 + payload.length);
    message[0] = streamId;
    message.set(payload, 1);
    this.#checkSize(message.length);
    if (streamId >= RELIABLE) {
      this.#owner.checkAlive();
      this.#outbox.putReliable({ message, size: message.length });
    } else {
      if (!this.#owner.route()) return false;
      this.#outbox.putVolatile(streamId, message);
    }
    this.flush();
    return true;
  }

  send(data, { id, ack = false, timeout = this.#timing.ack } = {}) {
    if (data === undefined) throw new TypeError("undefined is not a JSON value; null is");
    const name = ack && id === undefined ? `${(start ??= randomHex(12, this.#env.random))}-${++counter}` : id;
    const message = JSON.stringify({ type: "send", data, id: name, ...(ack && { ack }) });
    const size = utf8(message).length;
    this.#checkSize(size);
    this.#owner.checkAlive();
    this.#outbox.putReliable({ message, size, ackId: ack ? name : undefined });
    const answer = ack ? this.#acks.wait(name, timeout) : undefined;
    this.flush();
    return answer;
  }

  /** The other device waits for this: the message with this id was delivered. */
  acknowledge(id) {
    const message = JSON.stringify({ type: "ack", id });
    this.#outbox.putAnswer({ message, size: message.length });
    this.flush();
  }

  acked(id) {
    this.#acks.settle(id);
  }

  failed({ id, code, detail }) {
    if (id !== undefined) this.#acks.fail(id, code, detail);
  }

  /** The receiver's queue is filling up, until the relay says that it is not, or nothing any more. */
  hold() {
    this.#pressureUntil = this.#env.now() + this.#timing.pressure;
    this.flush();
  }

  goOn() {
    this.#pressureUntil = 0;
    this.flush();
  }

  async drained() {
    while (!this.#outbox.isDrained) await new Promise((resolve) => this.#drained.push(resolve));
    this.#owner.checkAlive();
  }

  /** Frames that waited for a link that is gone would be stale on the next one. */
  dropVolatile() {
    this.#outbox.dropVolatile();
  }

  /** Nothing can be sent any more, or not to this user; how many reliable messages were lost. */
  clear(why) {
    this.#env.clearTimeout(this.#timer);
    this.#outbox.dropVolatile();
    const unsent = this.#outbox.dropReliable().length;
    this.#acks.failAll("closed", `no answer can come: ${why}`);
    this.#wakeDrained();
    return unsent;
  }

  flush() {
    this.#env.clearTimeout(this.#timer);
    const route = this.#owner.route();
    if (!route?.link.isOpen) return;
    const { link, path, held } = route;
    const reliableWait = (size) => (held ? Infinity : Math.max(this.#pressureUntil - this.#env.now(), link.reliableWait(size)));
    for (;;) {
      const { frame, entry, wait } = this.#outbox.take((size) => path.volatileWait(size), reliableWait);
      if (frame) path.sendVolatile(frame);
      else if (entry) this.#sendReliable(link, entry);
      else {
        if (wait < Infinity) this.#timer = this.#env.setTimeout(() => this.flush(), Math.max(wait, this.#timing.poll));
        break;
      }
    }
    if (this.#outbox.isDrained) this.#wakeDrained();
  }

  #sendReliable(link, { message, size, ackId }) {
    if (size > this.messageBytes) {
      const error = { id: ackId, code: "too_big", detail: `${size} bytes, queued before the relay sent its limit` };
      this.failed(error);
      this.#owner.emit("error", error);
    } else if (ackId !== undefined && !link.has("ack")) {
      this.#acks.fail(ackId, "ack_unsupported", "this relay knows no acks: the message was not sent");
    } else if (ackId === undefined || this.#acks.has(ackId)) {
      link.sendReliable(message, size);
    } // else its time is over: nobody waits for it any more
  }

  #wakeDrained() {
    for (const resolve of this.#drained.splice(0)) resolve();
  }

  #checkSize(size) {
    // The relay would end the connection for good (1009).
    if (size > this.messageBytes) throw new SendError("too_big", `${size} bytes are over the relay's limit of ${this.messageBytes}`);
  }
}
