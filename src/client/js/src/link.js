import { Budget } from "./budget.js";
import { Delay } from "./delay.js";
import { Pacing, Reporter } from "./pacing.js";

const PROTOCOL = "duorelay.v1";

/** A relay that reports nothing: a volatile frame goes out only while less than this waits in the socket, growing old. */
const VOLATILE_ROOM = 1024;
/** The same with a relay that reports: its window counts what the socket holds, and this is for the page's own memory. */
const REPORTED_ROOM = 64 * 1024;
/** Reliable bytes on their way before a pong, where the relay reports no pressure. */
const RELIABLE_ROOM = 64 * 1024;

/** Messages that make no report due: two ends would answer each other for ever. */
const QUIET = new Set(["received", "reports", "ping", "pong"]);
const REPORT = '{"type":"received"';

/**
 * One WebSocket from its handshake to its end. `owner.onGone` is called exactly once, unless `end` came first.
 *
 * One timer serves all that waits for time: the welcome, a dead path, the next ping, a report. It is never moved back on
 * the way of a frame: when it rings too early, it is set anew.
 */
export class Link {
  welcome = null;
  opened = false;
  rtt = null;
  delay = new Delay();
  /** The new holder of the slot, once the relay has named it. */
  overwrittenBy = null;
  /** Which attempt opened it (attempt.js). */
  attempt;
  /** This client has opened another socket while this one was alive: an overwrite may be its own hand-over. */
  succeeded = false;

  #owner;
  #env;
  #timing;
  #features = new Set();
  #budget = null;
  #timer = null;
  #alarmAt = Infinity;
  #endsAt; // without a welcome, or after a hand-over
  #welcomedAt = Infinity;

  // Signs of life. Pongs come in the order of their pings.
  #pings = [];
  #pingId = 0;
  #pingedAt = -Infinity;
  #heardAt = 0;
  #reprieved; // what was heard last when a late timer was forgiven
  #activeUntil = -Infinity;
  #passBarrier = () => {};

  // Reliable bytes: all that were sent, those up to the last ping, and those up to the last pong.
  #reliable = { sent: 0, pinged: 0, ponged: 0 };

  // What this link may send, and what it reports to have read; null where the relay knows no reports.
  #pacing = null;
  #reporter = null;
  #askedPace;

  constructor(url, token, timing, env, owner) {
    this.#owner = owner;
    this.#env = env;
    this.#timing = timing;
    this.#askedPace = timing.report;
    const ws = (this.ws = new env.WebSocket(url, [PROTOCOL, token]));
    ws.binaryType = "arraybuffer";
    ws.onopen = () => {
      this.opened = true;
      // A classic server answers with the only thing that it knows in the offer, the token.
      if (ws.protocol !== PROTOCOL) this.fail(1002);
    };
    ws.onmessage = ({ data }) => this.#heard(data);
    ws.onerror = () => {};
    ws.onclose = ({ code, reason }) => this.fail(code, reason);
    this.#endsAt = env.now() + timing.attempt;
    this.#alarm(this.#endsAt);
  }

  get isOpen() {
    return this.ws.readyState === 1;
  }

  /** Does the relay understand this, beyond the first version? What it does not, must not be sent. */
  has(feature) {
    return this.#features.has(feature);
  }

  /** Long enough alive that earlier failures do not count any more. */
  get stable() {
    return this.#env.now() - this.#welcomedAt >= this.#timing.stable;
  }

  // ---- Out --------------------------------------------------------------------------------------------------------

  /** Milliseconds until a volatile frame of `size` bytes may leave. */
  volatileWait(size) {
    const waiting = this.ws.bufferedAmount ?? 0; // React Native does not count
    const room = this.#pacing ? REPORTED_ROOM : VOLATILE_ROOM;
    // Even a frame over the room goes out when nothing is before it.
    if (waiting > 0 && waiting + size > room) return this.#timing.poll;
    return this.#wait(size, "volatile");
  }

  /** The same for a reliable message; Infinity: a pong will make room. */
  reliableWait(size) {
    const { sent, ponged } = this.#reliable;
    if (sent > ponged && sent - ponged + size > this.#credit) {
      if (this.#pings.length === 0) this.ping();
      return Infinity;
    }
    return this.#wait(size, "reliable");
  }

  sendVolatile(message) {
    this.#write(message, "volatile");
    this.#active();
  }

  sendReliable(message, size) {
    this.#write(message, "reliable", size);
    this.#reliable.sent += size;
    if (this.#reliable.sent - this.#reliable.pinged >= this.#credit / 2) this.ping();
    this.#active();
  }

  /** What the relay itself reads: it never waits. */
  say(message) {
    this.#write(JSON.stringify(message), QUIET.has(message.type) ? "quiet" : "control");
  }

  /** Asks for a sign of life, for the room of what was sent before it, and for the round trip. */
  ping(isUrgent = this.#isActive) {
    const now = this.#env.now();
    this.#pingedAt = now;
    this.#reliable.pinged = this.#reliable.sent;
    this.#pings.push({ id: String(++this.#pingId), at: now, reliable: this.#reliable.sent, isUrgent });
    this.say({ type: "ping", id: String(this.#pingId) });
    this.#alarm(this.#silentAt());
    return this.#pingId;
  }

  /** The page woke up or changed its network: ask at once, and do not wait long for the answer. */
  probe() {
    this.ping(true);
  }

  /** Waits until the relay has handed on everything that was sent here, or until `ms` are over. */
  async barrier(ms) {
    const id = this.ping();
    let limit;
    await new Promise((resolve) => {
      this.#passBarrier = (ponged = Infinity) => ponged >= id && resolve();
      limit = this.#env.setTimeout(resolve, ms);
    });
    this.#env.clearTimeout(limit);
  }

  // ---- The end ----------------------------------------------------------------------------------------------------

  /** Lets the socket go without another word to the owner. */
  end() {
    this.#passBarrier();
    this.#env.clearTimeout(this.#timer);
    this.#alarmAt = -Infinity;
    const ws = this.ws;
    ws.onopen = ws.onmessage = ws.onclose = null;
    // Not waiting for onclose: over a dead network browsers take a minute for it.
    if (ws.readyState < 2) ws.close(1000);
  }

  /** The socket ended, or is as good as ended. */
  fail(code, reason = "") {
    this.end();
    this.#owner.onGone(this, code, reason);
  }

  /** After a hand-over: a limited time to deliver the rest. */
  linger() {
    this.#endsAt = this.#env.now() + this.#timing.linger;
    this.#alarm(this.#endsAt);
  }

  // ---- In ---------------------------------------------------------------------------------------------------------

  #heard(data) {
    const now = this.#env.now();
    this.#heardAt = now;
    let message;
    if (typeof data === "string") {
      try {
        message = JSON.parse(data);
      } catch {
        message = {}; // not a relay's: nothing of the protocol is lost with it
      }
    } else {
      this.#active();
    }
    this.#reporter?.onRead(now, !QUIET.has(message?.type));
    if (!message) {
      const bytes = new Uint8Array(data);
      this.#owner.onFrame(this, bytes[0], bytes.subarray(1));
    } else if (this.#understand(message, now)) {
      this.#owner.onControl(this, message);
    }
    // Here and not only by the timer, which a hidden page gets once a second or once a minute.
    this.#report();
  }

  /** What concerns this link alone; false: nobody else needs to know. */
  #understand(message, now) {
    switch (message.type) {
      case "welcome":
        this.welcome = message;
        this.#welcomedAt = now;
        this.#endsAt = Infinity;
        this.#features = new Set(message.features);
        this.#budget = new Budget(message.limits, now);
        if (this.has("received")) {
          this.#pacing = new Pacing(now, 0, false);
          this.#reporter = new Reporter(0);
          this.#reporter.onRead(now, true);
          this.#report();
        }
        this.ping();
        return true;
      case "pong":
        return this.#onPong(message, now);
      case "reports":
        if (message.every_ms >= 50 && message.every_ms <= 1000) this.#reporter?.setPace(message.every_ms);
        return false;
      case "received":
        this.#pacing?.onReport(now, message.messages, message.time);
        this.#askPace();
        return true;
      default:
        return true;
    }
  }

  #onPong({ id, time }, now) {
    const index = this.#pings.findIndex((ping) => ping.id === id);
    if (index < 0) return false;
    const ping = this.#pings[index];
    this.#pings.splice(0, index + 1);
    this.#reliable.ponged = ping.reliable;
    this.rtt = now - ping.at;
    this.delay.onPong(ping.at, now, time);
    this.#passBarrier(Number(id));
    return true;
  }

  #report() {
    const report = this.#reporter?.report(this.#env.now());
    if (report) this.say({ type: "received", ...report });
    else this.#alarm(this.#reporter?.dueAt ?? Infinity);
  }

  /** Where a queue begins to form, the relay shall report more often. */
  #askPace() {
    const pace = this.#pacing?.pace ?? this.#askedPace;
    if (pace === this.#askedPace) return;
    this.#askedPace = pace;
    this.say({ type: "reports", every_ms: pace });
  }

  #wait(size, kind) {
    const now = this.#env.now();
    return Math.max(this.#budget.wait(now, size), this.#pacing ? this.#pacing.mayLeaveAt(now, kind) - now : 0);
  }

  #write(message, kind, size = message.length) {
    // What a socket that just closed cannot take is lost, like what it had not written yet.
    if (!this.isOpen) return;
    const now = this.#env.now();
    // Reports are free of the relay's rate.
    if (!message.startsWith?.(REPORT)) this.#budget?.spend(now, size);
    this.#pacing?.onSent(now, size, kind);
    this.ws.send(message);
    if (kind !== "quiet") this.#askPace();
  }

  // ---- Time -------------------------------------------------------------------------------------------------------

  get #credit() {
    const { queue_bytes } = this.welcome.limits;
    return this.has("pressure") ? queue_bytes / 4 : Math.min(RELIABLE_ROOM, queue_bytes / 4);
  }

  /** Frames flow: a dead path shall be noticed soon, also when it ends the flow. */
  #active() {
    const now = this.#env.now();
    this.#activeUntil = now + 2 * this.#timing.activePing;
    if (now - this.#pingedAt >= this.#timing.activePing) this.ping();
    else this.#alarm(this.#pingDue());
  }

  get #isActive() {
    return this.#env.now() <= this.#activeUntil;
  }

  #pingDue() {
    if (!this.welcome) return Infinity;
    return this.#pingedAt + (this.#isActive ? this.#timing.activePing : this.#timing.ping);
  }

  /** When the path counts as dead, if nothing comes until then. A slow path gets more time than it last took. */
  #silentAt() {
    const { silence, activeSilence } = this.#timing;
    const urgent = Math.min(silence, Math.max(activeSilence, 1000 + 2 * (this.rtt ?? 0)));
    return Math.min(...this.#pings.map(({ at, isUrgent }) => Math.max(at, this.#heardAt) + (isUrgent ? urgent : silence)));
  }

  #alarm(at) {
    if (at >= this.#alarmAt) return;
    this.#alarmAt = at;
    this.#env.clearTimeout(this.#timer);
    this.#timer = this.#env.setTimeout(() => this.#ring(at), Math.max(0, at - this.#env.now()));
  }

  #ring(due) {
    const now = this.#env.now();
    this.#alarmAt = Infinity;
    if (now >= this.#endsAt) return this.fail(this.welcome ? 1000 : 1006, "no welcome in time");
    let silentAt = this.#silentAt();
    if (now >= silentAt) {
      // A timer that is this late was frozen with its page: what arrived meanwhile must be read before it is missed. Once:
      // the timers of a page that has been hidden for minutes are always late, and it reads all the while.
      if (now - due < 500 || this.#reprieved === this.#heardAt) return this.fail(1006, "the relay went silent");
      this.#reprieved = this.#heardAt;
      silentAt = now + 1000;
    }
    this.#report();
    if (now >= this.#pingDue() && this.#endsAt === Infinity) this.ping();
    this.#alarm(Math.min(this.#endsAt, silentAt, this.#reporter?.dueAt ?? Infinity, this.#endsAt === Infinity ? this.#pingDue() : Infinity));
  }
}
