import { Channel } from "./channel.js";
import { Arrivals, Departures } from "./order.js";
import { choosePath, retryAfter, silentAt } from "./path.js";
import { TIMING } from "./timing.js";

/** The id of each signal: an error about one is nobody's but this file's. */
const SIGNAL = "duorelay.signal";

/**
 * The direct path between this connection and the other device's (WebRTC), arranged by `signal`s through the relay. It
 * belongs to the two connections that arranged it and ends with either of them. Only volatile frames take it; whatever
 * fails, they go on by the relay.
 *
 * The desktop offers. A signal's `data` is `{ direct: SESSION, kind, … }`, and one of another session is stale:
 *
 * | kind | from | meaning |
 * | --- | --- | --- |
 * | `offer`, `answer` (`sdp`), `candidate` (`candidate`) | both | WebRTC's own (RFC 8829) |
 * | `back` (`streams`: `[id, number, print]` each) | both | these streams are on the relay's path again (order.js) |
 * | `bye` (`because`) | both | this end leaves the path: its page is hidden, or its channel failed |
 * | `ready` | the mobile | its page is visible again: the desktop may offer |
 *
 * It is a file of its own, so that pages without it load nothing of it; `tools` are `Pacing` and `randomHex` of the other one.
 * `owner` has `link()` (the link that was welcomed, or null), `emit(event, ...details)` and `flush()`: what waits to be sent
 * shall be looked at.
 */
export class Direct {
  #tools;
  #env;
  #timing;
  #owner;
  #pair = null; //      { mine, theirs, offers, stun }
  #session = null;
  #channel = null;
  #arrivals = new Arrivals();
  #before = new Arrivals(); // of the link that the present one replaced
  #departures = new Departures();
  #numbers = { last: 0 };
  #path = "relay";
  #directSince = Infinity;
  #failures = 0;
  #notBefore = -Infinity;
  #isHidden = false;
  #isUnanswered = false; // the other library does not know the direct path, or does not want it
  #timer = null; //        the answer, the channel's opening, or the next attempt
  #watch = null; //        the moment when the path counts as silent
  #watchAt = Infinity;

  /** Null where the platform has no WebRTC. */
  static of(tools, env, timing, owner) {
    return typeof env.RTCPeerConnection === "function" ? new Direct(tools, env, timing, owner) : null;
  }

  constructor(tools, env, timing, owner) {
    this.#tools = tools;
    this.#env = env;
    this.#timing = { ...TIMING, ...timing };
    this.#owner = owner;
    this.#onVisibility();
    env.page?.addEventListener("visibilitychange", this.#onVisibility);
    env.page?.addEventListener("online", this.#onNetwork);
  }

  /** The path that volatile frames take. */
  get path() {
    return this.#path;
  }

  /** Half of the direct path's round trip, in milliseconds; null while it is not open. */
  get delay() {
    return this.#channel?.isOpen && this.#channel.trip !== null ? this.#channel.trip / 2 : null;
  }

  // ---- The pair of the path -----------------------------------------------------------------------------------------

  /** The connections on both ends, whenever they may have changed. */
  setPair(welcome, peer) {
    const pair = welcome?.features?.includes("signal") && peer ? { mine: welcome.connection, theirs: peer.connection } : null;
    if (pair?.mine === this.#pair?.mine && pair?.theirs === this.#pair?.theirs) return;
    this.#drop();
    this.#before = this.#arrivals;
    this.#arrivals = new Arrivals();
    this.#departures = new Departures();
    this.#numbers = { last: 0 };
    this.#session = null;
    this.#failures = 0;
    this.#notBefore = -Infinity;
    this.#isUnanswered = false;
    this.#pair = pair && { ...pair, offers: welcome.device === "desktop", stun: welcome.stun ?? [] };
    this.#offer();
  }

  /** For good. */
  stop() {
    this.#env.page?.removeEventListener("visibilitychange", this.#onVisibility);
    this.#env.page?.removeEventListener("online", this.#onNetwork);
  }

  /** This page is in the background, where timers come late, or back. */
  #onVisibility = () => {
    const isHidden = this.#env.page?.document?.visibilityState === "hidden";
    if (isHidden === this.#isHidden) return;
    this.#isHidden = isHidden;
    if (isHidden) {
      this.#bye("hidden");
    } else if (this.#pair?.offers) {
      this.#offer();
    } else if (this.#pair) {
      this.#say({ kind: "ready" });
    }
  };

  /** The network changed: the path that was found may be another one's now. */
  #onNetwork = () => {
    if (this.#channel !== null) this.#fail("network");
  };

  // ---- Sending ------------------------------------------------------------------------------------------------------

  /** Where volatile frames go; `link` is where they go by the relay. */
  route(link) {
    this.#choose();
    if (this.#path === "direct") return this.#directRoute;
    return { volatileWait: (size) => this.#relayWait(link, size), sendVolatile: (message) => this.#sendByRelay(link, message) };
  }

  #directRoute = {
    volatileWait: (size) => (this.#channel.takes(size) ? this.#channel.wait() : 0),
    sendVolatile: (message) => {
      // A frame that no data channel takes in one piece goes by the relay.
      if (!this.#channel.takes(message.length)) return this.#sendByRelay(this.#owner.link(), message);
      this.#departures.sentDirect(this.#env.now(), message[0], this.#channel.send(message));
      this.#watchSilence();
    },
  };

  #relayWait(link, size) {
    const settled = this.#departures.settledAt(this.#timing.directSettle) - this.#env.now();
    return Math.max(link.volatileWait(size), settled);
  }

  #sendByRelay(link, message) {
    link.sendVolatile(message);
    if (this.#departures.owesBack(message[0])) this.#departures.sentByRelay(message[0], message.subarray(1), link.ping());
  }

  /** The relay has answered a ping of the link that was welcomed. */
  onPong(ping) {
    const streams = this.#departures.onPong(ping);
    if (streams.length > 0) this.#say({ kind: "back", streams });
  }

  #choose() {
    const channel = this.#channel;
    const direct = {
      isOpen: channel?.isOpen ?? false,
      isHidden: this.#isHidden,
      unheardSince: channel?.unheardSince ?? null,
      fullSince: channel?.fullSince ?? null,
      trip: channel?.trip ?? null,
      heardAt: channel?.heardAt ?? -Infinity,
      notBefore: this.#notBefore,
    };
    const now = this.#env.now();
    const { path, because } = choosePath(now, this.#path, direct, this.#relayDelay(), this.#timing);
    if (because === "silent" || because === "full") {
      // The channel may live on: the path is tried again once it answers and the pause is over.
      if (now >= this.#notBefore) this.#notBefore = now + retryAfter(this.#failures++, this.#timing);
      channel.unheardSince = channel.fullSince = null;
    }
    if (path === "direct" && now - this.#directSince >= this.#timing.directStable) this.#failures = 0;
    if (path === this.#path) return;
    this.#path = path;
    this.#directSince = path === "direct" ? now : Infinity;
    this.#owner.emit("path", path, because);
    // Later: it may be the sender that asked.
    this.#env.setTimeout(() => this.#owner.flush(), 0);
  }

  /** How long a frame takes by the relay: up from here, and down to the other device, as that says. */
  #relayDelay() {
    const up = this.#owner.link()?.delay.up ?? null;
    const down = this.#channel?.peerDown ?? null;
    return up === null || down === null ? null : up + down;
  }

  #watchSilence() {
    const at = silentAt(this.#channel, this.#timing);
    if (at >= this.#watchAt && this.#watchAt > this.#env.now()) return;
    this.#env.clearTimeout(this.#watch);
    this.#watchAt = at;
    this.#watch = this.#env.setTimeout(() => {
      this.#watchAt = Infinity;
      if (this.#channel === null) return;
      const due = silentAt(this.#channel, this.#timing);
      if (due === Infinity) return;
      if (due > this.#env.now()) this.#watchSilence();
      else this.#choose();
    }, Math.max(0, at - this.#env.now()));
  }

  // ---- Receiving ----------------------------------------------------------------------------------------------------

  /** A volatile frame that came by the relay: may it be delivered now? `isOld`: on a link that was replaced. */
  onRelayFrame(streamId, bytes, isOld) {
    // What the old link still brings was sent before the direct frames that came while it was the newest.
    if (isOld) return !this.#before.isDirect(streamId);
    return this.#arrivals.fromRelay(this.#env.now(), streamId, bytes);
  }

  #onDirectFrame(streamId, number, bytes) {
    // Nothing of a connection that is not the newest: the pair ends with the first word of another one.
    if (this.#arrivals.fromDirect(this.#env.now(), streamId, number)) this.#owner.emit("frame", streamId, bytes);
  }

  /** Is this error about a signal? The other connection left before it heard it, and `peer` says so to the app. */
  isOwn({ id }) {
    return id === SIGNAL;
  }

  onSignal({ from, data }) {
    if (!this.#pair || from !== this.#pair.theirs || data === null || typeof data !== "object") return;
    // These two are about the pair, whichever channel it has now.
    if (data.kind === "ready" && this.#pair.offers) {
      this.#isUnanswered = false;
      if (!this.#channel) this.#offer();
    } else if (data.kind === "back" && Array.isArray(data.streams)) {
      return this.#onBack(data.streams);
    } else if (data.kind === "offer" && !this.#pair.offers && typeof data.direct === "string") {
      return this.#accept(data);
    }
    if (data.direct !== this.#session || this.#session === null) return;
    switch (data.kind) {
      case "answer":
        if (!this.#pair.offers || !this.#channel) return;
        this.#wait(this.#timing.directOpen, () => this.#fail("not open in time"));
        return void this.#channel.answered(data.sdp);
      case "candidate":
        return this.#channel?.candidate(data.candidate);
      case "bye":
        this.#drop();
        if (data.because === "hidden") this.#notBefore = -Infinity; // until it says `ready`, or gets an offer
        else this.#retry();
    }
  }

  #onBack(streams) {
    for (const stream of streams.slice(0, 128)) {
      if (!Array.isArray(stream)) continue;
      const [streamId, number, print] = stream;
      const kept = this.#arrivals.back(streamId, number, print);
      if (kept) this.#owner.emit("frame", streamId, kept);
    }
  }

  // ---- Arranging it -------------------------------------------------------------------------------------------------

  #offer() {
    if (!this.#pair?.offers || this.#isHidden || this.#isUnanswered) return;
    this.#drop();
    this.#session = this.#tools.randomHex(8, this.#env.random);
    this.#open();
    if (this.#channel === null) return;
    this.#wait(this.#timing.directAnswer, () => {
      this.#isUnanswered = true;
      this.#drop();
    });
    this.#channel.offer();
  }

  #accept({ direct, sdp }) {
    this.#drop();
    this.#session = direct;
    // Its page is hidden: silence would look like a library that knows no direct path.
    if (this.#isHidden) return this.#say({ kind: "bye", because: "hidden" });
    this.#open();
    if (this.#channel === null) return;
    this.#wait(this.#timing.directOpen, () => this.#fail("not open in time"));
    this.#channel.answer(sdp);
  }

  #open() {
    const session = this.#session;
    try {
      this.#channel = new Channel(this.#tools.Pacing, this.#env, this.#timing, this.#pair.stun, this.#numbers, () => this.#owner.link()?.delay.down ?? null, {
        signal: (data) => session === this.#session && this.#say(data),
        open: () => this.#wait(null),
        heard: (read) => {
          this.#departures.onRead(read);
          this.#choose();
        },
        frame: (streamId, number, bytes) => this.#onDirectFrame(streamId, number, bytes),
        ended: (reason) => this.#fail(reason),
      });
    } catch (cause) {
      this.#fail(String(cause?.message ?? cause)); // a policy of the page or of the browser forbids it
    }
  }

  #fail(reason) {
    this.#bye(reason);
    this.#retry();
  }

  /** The desktop offers again, later after each failure. */
  #retry() {
    if (!this.#pair?.offers) return;
    this.#wait(retryAfter(this.#failures++, this.#timing), () => this.#offer());
  }

  #bye(because) {
    if (this.#session !== null && this.#pair) this.#say({ kind: "bye", because });
    this.#drop();
  }

  #say(data) {
    this.#owner.link()?.say({ type: "signal", to: this.#pair.theirs, data: { direct: this.#session, ...data }, id: SIGNAL });
  }

  /** One thing at a time is waited for; null: none. */
  #wait(ms, work) {
    this.#env.clearTimeout(this.#timer);
    this.#timer = ms === null ? null : this.#env.setTimeout(work, ms);
  }

  /** Ends the channel; what left on it and is still on its way is stale. */
  #drop() {
    this.#wait(null);
    this.#env.clearTimeout(this.#watch);
    this.#watchAt = Infinity;
    this.#channel?.close();
    this.#channel = null;
    this.#choose();
  }
}
