/** Stream id and number. */
const HEADER = 5;
/** Bytes that may wait in the channel, growing old, before a frame waits where a newer one replaces it. */
const ROOM = 4096;
/** What a data channel takes in one piece everywhere (RFC 8841, section 6.1, and what browsers announce). */
const MESSAGE_BYTES = 65_536;

/**
 * One WebRTC data channel and what both ends report to each other on it. Frames are binary: the stream id, a number in 32 bits,
 * and the payload. Text is JSON:
 *
 * | message | meaning |
 * | --- | --- |
 * | `{"t":"ping","at":MS,"down":MS}` | answered at once; `down` is how long the relay's frames take to this end |
 * | `{"t":"pong","at":MS,"down":MS}` | `at` is the ping's |
 * | `{"t":"read","n":N,"at":MS}` | the highest number of a frame read, and when by the reporter's clock |
 *
 * `on` has `signal(data)`, `open()`, `frame(streamId, number, bytes)`, `heard(number)` (frames up to it were read) and `ended(reason)`; after `ended` nothing
 * follows.
 */
export class Channel {
  trip = null;
  /** How long the relay's frames take to the other end, as it says. */
  peerDown = null;
  isOpen = false;
  heardAt;
  unheardSince = null;
  fullSince = null;

  #Pacing;
  #env;
  #timing;
  #on;
  #connection;
  #channel;
  #candidates = []; // those that came before the description that they belong to
  #numbers;
  #pacing = null;
  #read = null; // what was read here, and when the last report of it left
  #reportTimer = null;
  #pingTimer = null;
  #ended = false;
  #relayDown;

  /**
   * `numbers.last` goes on over all channels of a pair; `relayDown()` is how long the relay's frames take to this end.
   */
  constructor(Pacing, env, timing, stun, numbers, relayDown, on) {
    this.#Pacing = Pacing;
    this.#env = env;
    this.#timing = timing;
    this.#numbers = numbers;
    this.#relayDown = relayDown;
    this.#on = on;
    this.heardAt = env.now();
    const connection = (this.#connection = new env.RTCPeerConnection({ iceServers: stun.length ? [{ urls: stun }] : [] }));
    // Both ends make it by themselves, so that nothing travels to open it. A frame that was lost is not worth a second try.
    const channel = (this.#channel = connection.createDataChannel("duorelay", { negotiated: true, id: 0, ordered: false, maxRetransmits: 0 }));
    channel.binaryType = "arraybuffer";
    channel.onopen = () => this.#ping();
    channel.onmessage = ({ data }) => this.#heard(data);
    channel.onclose = () => this.#end("closed");
    channel.onerror = () => this.#end("closed");
    connection.onconnectionstatechange = () => {
      if (connection.connectionState === "failed" || connection.connectionState === "closed") this.#end(connection.connectionState);
    };
    connection.onicecandidate = ({ candidate }) => candidate && on.signal({ kind: "candidate", candidate: candidate.toJSON?.() ?? candidate });
  }

  // ---- Arranging it -------------------------------------------------------------------------------------------------

  offer() {
    return this.#try(async () => {
      await this.#connection.setLocalDescription(await this.#connection.createOffer());
      this.#on.signal({ kind: "offer", sdp: this.#connection.localDescription.sdp });
    });
  }

  answer(sdp) {
    return this.#try(async () => {
      await this.#connection.setRemoteDescription({ type: "offer", sdp });
      await this.#takeCandidates();
      await this.#connection.setLocalDescription(await this.#connection.createAnswer());
      this.#on.signal({ kind: "answer", sdp: this.#connection.localDescription.sdp });
    });
  }

  answered(sdp) {
    return this.#try(async () => {
      await this.#connection.setRemoteDescription({ type: "answer", sdp });
      await this.#takeCandidates();
    });
  }

  candidate(candidate) {
    if (!this.#connection.remoteDescription) this.#candidates.push(candidate);
    // A candidate of a kind that this browser does not know is no reason to give up the others.
    else this.#connection.addIceCandidate(candidate).catch(() => {});
  }

  async #takeCandidates() {
    for (const candidate of this.#candidates.splice(0)) await this.#connection.addIceCandidate(candidate).catch(() => {});
  }

  async #try(work) {
    try {
      await work();
    } catch (cause) {
      this.#end(String(cause?.message ?? cause));
    }
  }

  // ---- Out ----------------------------------------------------------------------------------------------------------

  takes(size) {
    return size + HEADER <= MESSAGE_BYTES;
  }

  /** Milliseconds until a volatile frame may leave. */
  wait() {
    const now = this.#env.now();
    if (this.#channel.bufferedAmount > ROOM) {
      this.fullSince ??= now;
      return this.#timing.poll;
    }
    if (this.#channel.bufferedAmount === 0) this.fullSince = null;
    return Math.max(0, this.#pacing.mayLeaveAt(now, "volatile") - now);
  }

  /** Sends a frame, whose first byte is its stream id; its number. */
  send(message) {
    const now = this.#env.now();
    const packet = new Uint8Array(message.length + HEADER - 1);
    packet[0] = message[0];
    new DataView(packet.buffer).setUint32(1, ++this.#numbers.last);
    packet.set(message.subarray(1), HEADER);
    this.#post(packet);
    this.#pacing.onSent(now, packet.length, "volatile");
    this.unheardSince ??= now;
    return this.#numbers.last;
  }

  #say(message) {
    this.#post(JSON.stringify(message));
  }

  #post(message) {
    if (this.#channel.readyState !== "open") return;
    try {
      this.#channel.send(message);
    } catch {} // its buffer is full: it ends by that, or by silence
  }

  #ping() {
    if (this.#ended) return;
    this.#say({ t: "ping", at: this.#env.now(), down: this.#relayDown() });
    this.#pingTimer = this.#env.setTimeout(() => {
      if (this.#env.now() - this.heardAt > this.#timing.directDead) this.#end("silent");
      else this.#ping();
    }, this.isOpen ? this.#timing.directPing : this.#timing.directSilence);
  }

  // ---- In -----------------------------------------------------------------------------------------------------------

  #heard(data) {
    const now = this.#env.now();
    this.heardAt = now;
    if (typeof data !== "string") return this.#onFrame(new Uint8Array(data), now);
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return;
    }
    switch (message?.t) {
      case "ping":
        return this.#say({ t: "pong", at: message.at, down: this.#relayDown() });
      case "pong":
        return this.#onPong(message, now);
      case "read":
        this.unheardSince = null;
        this.#pacing?.onReport(now, message.n, message.at);
        return this.#on.heard(message.n);
      default: // a newer library says more than we know
    }
  }

  #onPong({ at, down }, now) {
    if (!(at <= now)) return;
    this.trip = now - at;
    this.peerDown = typeof down === "number" ? down : null;
    if (!this.isOpen) {
      this.isOpen = true;
      this.#pacing = new this.#Pacing(now, this.#numbers.last, true);
      this.#on.open();
    }
    this.#on.heard(0);
  }

  #onFrame(packet, now) {
    if (packet.length < HEADER || packet[0] >= 0x80) return;
    const number = new DataView(packet.buffer).getUint32(1);
    this.#read ??= { highest: 0, readAt: now, sentAt: -Infinity };
    if (number > this.#read.highest) Object.assign(this.#read, { highest: number, readAt: now });
    this.#report(now);
    this.#on.frame(packet[0], number, packet.subarray(HEADER));
  }

  /** At least each 50 ms while frames come: the sender leaves a path that is silent for little more than that. */
  #report(now) {
    if (this.#reportTimer !== null || this.#ended) return;
    const due = this.#read.sentAt + this.#timing.directReport;
    if (now < due) {
      this.#reportTimer = this.#env.setTimeout(() => {
        this.#reportTimer = null;
        this.#report(this.#env.now());
      }, due - now);
      return;
    }
    this.#read.sentAt = now;
    this.#say({ t: "read", n: this.#read.highest, at: this.#read.readAt });
  }

  // ---- The end ------------------------------------------------------------------------------------------------------

  /** Ends it without another word. */
  close() {
    this.#ended = true;
    this.isOpen = false;
    this.#env.clearTimeout(this.#pingTimer);
    this.#env.clearTimeout(this.#reportTimer);
    const channel = this.#channel;
    channel.onopen = channel.onmessage = channel.onclose = channel.onerror = null;
    this.#connection.onconnectionstatechange = this.#connection.onicecandidate = null;
    this.#connection.close();
  }

  #end(reason) {
    if (this.#ended) return;
    this.close();
    this.#on.ended(reason);
  }
}
