// duorelay.js: the browser client of a duorelay relay. No dependencies; types are in duorelay.d.ts.
//
//   import { duorelay } from "/duorelay.js";
//
//   const relay = duorelay({ url: "/ws", getToken: ({ forceRefresh }) => user.getIdToken(forceRefresh) });
//   relay.on("peer", (peer) => console.log(peer ? "the other device is here" : "alone"));
//   relay.on("frame", (streamId, bytes) => draw(bytes));
//   relay.on("message", ({ data }) => console.log(data));
//   relay.frame(0x01, pose);            // 0x00-0x7F, volatile: only the newest frame of a stream matters
//   relay.frame(0x80, chunk);           // 0x80-0xFF, reliable: in order, queued; throws when the queue is full
//   relay.send({ hello: "world" });     // reliable JSON, in order with the reliable frames
//   relay.close();                      // final
//
// It stays connected by itself: full-jitter back-off after a broken network, a fresh token when the relay asks for
// one, a second socket before the first one ends. It stops by itself only where coming back would be wrong: another
// tab took over ("overwritten"), or the relay refuses this page or user ("refused"). `connect()` starts it again.
//
// At most once: what was handed to a socket that then broke is lost, reliable or not.
//
// One file, so that a page can take it as it is. From top to bottom: TabClient (which client am I?), Link (one
// WebSocket), DuoRelay (which link, and when the next one).

const PROTOCOL = "duorelay.v1";

/** The ping whose pong says that everything before it has been handed on; those for a sign of life are numbered. */
const BARRIER = "barrier";

/** The first reliable stream id. */
const RELIABLE = 0x80;

/** Times in milliseconds; `options.timing` overrides single ones. */
const TIMING = {
  attempt: 10_000, //     from opening a socket to its welcome
  token: 15_000, //       getToken
  session: 10_000, //     asking why a handshake was refused
  backoff: 500, //        full jitter: random(0, min(backoffMax, backoff * 2 ** failures))
  backoffMax: 30_000,
  restart: 1_000, //      "at once, with jitter" spreads a whole instance's clients over this time
  policy: 30_000, //      the long back-off: random(1, 2) times this
  retryAfterMax: 300_000, // a Retry-After is believed up to here
  stable: 10_000, //      a connection that lived this long forgets earlier failures
  ping: 10_000, //        how often a ping asks for a sign of life (and measures the round trip)
  silence: 15_000, //     how long it may stay unanswered: then the link is half-open
  probe: 4_000, //        the same, when the page just woke up or changed its network
  barrier: 1_000, //      how long a move waits for the old relay to hand on what it was sent
  linger: 3_000, //       how long the old socket may deliver its rest after a hand-over
  poll: 5, //             browsers have no "drained" event: how often bufferedAmount is looked at
};

/** A volatile frame goes out only while fewer bytes than this wait in the socket: what waits there is growing old. */
const VOLATILE_ROOM = 1024;
const RELIABLE_ROOM = 16 * 1024;

/** Few enough to pass the relay's rate limit (240 a second, ten seconds of patience) when all are sent at once. */
const QUEUE_MESSAGES = 1000;
const QUEUE_BYTES = 1024 * 1024;

/** What a close code asks of the client; every other code is a network that broke: back-off. */
const AFTER_CLOSE = {
  1002: { stop: "protocol_error" },
  1007: { stop: "invalid_utf8" },
  1008: { wait: "long" },
  1009: { stop: "message_too_big" },
  1012: { wait: "jitter" },
  4001: { stop: "overwritten" },
  4002: { stop: "disconnected" },
  4003: { wait: "jitter", forceRefresh: true },
};

/** Refusals that a fresh token may cure. */
const TOKEN_REFUSALS = new Set([
  "missing_token", "malformed_token", "token_expired", "token_not_yet_valid", "token_revoked",
  "wrong_audience", "wrong_issuer", "bad_signature", "unknown_key",
]);

/** Refusals that stay as they are, whatever this page does. */
const FINAL_REFUSALS = new Set(["origin_not_allowed", "user_disabled", "bad_device", "unsupported_protocol", "bad_request"]);

/** Starts a connection that keeps itself alive. See duorelay.d.ts for the options. */
export function duorelay(options) {
  return new DuoRelay(options);
}

/** Thrown to the caller of `send` and of a reliable `frame`; `code` is `queue_full`, `too_big` or `not_connected`. */
export class SendError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "SendError";
    this.code = code;
  }
}

/**
 * The client id of this tab: a reload keeps it, so that the relay sees a hand-over and not an eviction.
 *
 * Duplicating a tab copies its sessionStorage, and two open tabs must never share an id. So the id is in the storage
 * only while no page holds it: taken out on load, written back on pagehide, taken out again when the page returns
 * from the back/forward cache. There another page of this tab may have held it meanwhile; if it is gone, a new one is
 * made.
 */
export class TabClient {
  static #KEY = "duorelay.client";
  static #ofThisPage;

  #storage;

  constructor(storage, page) {
    this.#storage = storage;
    this.id = this.#take();
    page?.addEventListener("pagehide", () => this.#putBack());
    page?.addEventListener("pageshow", ({ persisted }) => {
      if (persisted) this.id = this.#take();
    });
  }

  /** One id for the whole page: two relays of one page are the same client. */
  static ofThisPage() {
    return (TabClient.#ofThisPage ??= new TabClient(sessionStorageIfAllowed(), globalThis.window));
  }

  #take() {
    const id = this.#storage?.getItem(TabClient.#KEY);
    this.#storage?.removeItem(TabClient.#KEY);
    return id || randomId();
  }

  #putBack() {
    try {
      this.#storage?.setItem(TabClient.#KEY, this.id);
    } catch {
      // The storage is full: the next page of this tab is a new client.
    }
  }
}

/** One WebSocket from its handshake to its end. `owner.onGone` is called exactly once, unless `end` came first. */
class Link {
  welcome = null;
  opened = false;
  rtt = null;
  /** The new holder of the slot, once the relay has named it. */
  overwrittenBy = null;
  /** This client has opened another socket while this one was alive: an overwrite may be its own hand-over. */
  successorTried = false;

  #owner;
  #timing;
  #limit;
  #beat;
  #silence = null;
  #silenceMs = Infinity;
  #ping = { id: 0, at: 0 };
  #passBarrier = () => {};
  #welcomedAt = 0;

  constructor(WebSocket, url, token, timing, owner) {
    this.#owner = owner;
    this.#timing = timing;
    const ws = (this.ws = new WebSocket(url, [PROTOCOL, token]));
    ws.binaryType = "arraybuffer";
    ws.onopen = () => {
      this.opened = true;
      // A classic server answers with the only thing that it knows in the offer, the token.
      if (ws.protocol !== PROTOCOL) this.fail(1002);
    };
    ws.onmessage = ({ data }) => this.#heard(data);
    ws.onerror = () => {};
    ws.onclose = ({ code, reason }) => this.fail(code, reason);
    this.#limit = setTimeout(() => this.fail(1006, "no welcome in time"), timing.attempt);
  }

  /** Long enough alive that earlier failures do not count any more. */
  get stable() {
    return this.welcome !== null && performance.now() - this.#welcomedAt >= this.#timing.stable;
  }

  /** Sends now. What a socket that just closed cannot take is lost, like what it had not written yet. */
  write(message) {
    if (this.ws.readyState === 1) this.ws.send(message);
  }

  say(message) {
    this.write(JSON.stringify(message));
  }

  /** Asks for a sign of life within `ms`; anything that arrives is one. */
  probe(ms) {
    this.#ping = { id: this.#ping.id + 1, at: performance.now() };
    this.say({ type: "ping", id: String(this.#ping.id) });
    if (this.#silence !== null && this.#silenceMs <= ms) return;
    clearTimeout(this.#silence);
    this.#silenceMs = ms;
    this.#silence = setTimeout(() => this.fail(1006, "the relay went silent"), ms);
  }

  /** Waits until the relay has handed on everything that was sent here, or until `ms` are over. */
  async barrier(ms) {
    const limit = setTimeout(() => this.#passBarrier(), ms);
    await new Promise((resolve) => {
      this.#passBarrier = resolve;
      this.say({ type: "ping", id: BARRIER });
    });
    clearTimeout(limit);
  }

  /** Lets the socket go without another word to the owner. */
  end() {
    this.#passBarrier();
    for (const timer of [this.#limit, this.#silence]) clearTimeout(timer);
    clearInterval(this.#beat);
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
    clearInterval(this.#beat);
    this.#limit = setTimeout(() => this.fail(1000), this.#timing.linger);
  }

  #heard(data) {
    if (this.#silence !== null) {
      clearTimeout(this.#silence);
      this.#silence = null;
    }
    if (typeof data !== "string") {
      const bytes = new Uint8Array(data);
      this.#owner.onFrame(this, bytes[0], bytes.subarray(1));
      return;
    }
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return; // not a relay's: nothing of the protocol is lost with it
    }
    if (message.type === "pong") {
      if (message.id === BARRIER) return this.#passBarrier();
      if (message.id !== String(this.#ping.id)) return;
      this.rtt = performance.now() - this.#ping.at;
    }
    if (message.type === "welcome") {
      clearTimeout(this.#limit);
      this.#welcomedAt = performance.now();
      this.#beat = setInterval(() => this.probe(this.#timing.silence), this.#timing.ping);
      this.welcome = message;
    }
    this.#owner.onControl(this, message);
  }
}

/** A connection to the relay that outlives its sockets. */
export class DuoRelay {
  #options;
  #timing;
  #page;
  #tab;
  #listeners = new Map();
  #state = "connecting";

  // Links. `next` is being opened, `current` was welcomed, `old` is what `current` replaced and still delivers its rest.
  #next = null;
  #current = null;
  #old = null;

  // When to try next. Each attempt has a number: what an earlier one still awaits is void.
  #attempt = 0;
  #failures = 0;
  #forceRefresh = false;
  #retry = null;
  #retryIsOrdered = false;
  #attemptedAt = -Infinity;
  #atBarrier = false; // a replacement is due and waits for the current link's barrier
  #suspended = false;

  // Out.
  #volatile = new Map();
  #queue = [];
  #queuedBytes = 0;
  #drain = null;
  #dropped = 0;
  #messageBytes = 65_536; // until the relay says more

  // In, during a hand-over: reliable messages of the new link wait for the old one's rest.
  #inbox = [];
  #newerStreams = new Set();

  #peer = null;
  #expiresAt = null;
  #backplane = "up";
  #refresh = null;
  #refreshedAt = -Infinity;

  constructor(options) {
    const { device, getToken, page = globalThis.window } = options;
    if (typeof getToken !== "function") throw new TypeError("duorelay needs a getToken function");
    if (device !== undefined && device !== "desktop" && device !== "mobile") throw new TypeError(`unknown device: ${device}`);
    this.#options = { queueBytes: QUEUE_BYTES, ...options };
    this.#timing = { ...TIMING, ...options.timing };
    this.#page = page;
    this.#socketUrl({ id: "" }); // a bad URL is the caller's mistake, now and not later
    this.#tab = options.client === undefined ? TabClient.ofThisPage() : { id: options.client };
    page?.addEventListener("online", this.#wake);
    page?.addEventListener("visibilitychange", this.#wake);
    page?.addEventListener("pagehide", this.#suspend);
    page?.addEventListener("pageshow", this.#resume);
    this.#connect();
  }

  get state() { return this.#state; }
  get client() { return this.#tab.id; }
  get welcome() { return this.#current?.welcome ?? null; }
  get peer() { return this.#peer; }
  get expiresAt() { return this.#expiresAt; }
  get backplane() { return this.#backplane; }
  get rtt() { return this.#current?.rtt ?? null; }
  get dropped() { return this.#dropped; }

  /** Calls `listener` at each `type` event; the returned function ends that. */
  on(type, listener) {
    const listeners = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /** Sends `bytes` on a stream. False: a volatile frame had no connection to go to. */
  frame(streamId, bytes) {
    if (!Number.isInteger(streamId) || streamId < 0 || streamId > 0xff) throw new RangeError(`stream id out of range: ${streamId}`);
    const payload = bytes instanceof ArrayBuffer ? new Uint8Array(bytes) : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const message = new Uint8Array(1 + payload.length);
    message[0] = streamId;
    message.set(payload, 1);
    this.#checkSize(message.length);
    if (streamId >= RELIABLE) {
      this.#enqueue(message, message.length);
    } else {
      if (!this.#current) return false;
      // The newer frame takes the older one's place in the line, so that no stream starves another.
      if (this.#volatile.has(streamId)) this.#dropped += 1;
      this.#volatile.set(streamId, message);
    }
    this.#flush();
    return true;
  }

  /** Sends any JSON value to the other device, reliably. `id` comes back in an `error` about it. */
  send(data, { id } = {}) {
    if (data === undefined) throw new TypeError("undefined is not a JSON value; null is");
    const text = JSON.stringify({ type: "send", data, id });
    const size = new TextEncoder().encode(text).length;
    this.#checkSize(size);
    this.#enqueue(text, size);
    this.#flush();
  }

  /** Tries now: after it stopped (`overwritten`, `refused`), or instead of waiting for the next attempt. */
  connect() {
    if (this.#state === "closed") throw new SendError("not_connected", "this relay was closed");
    if (this.#state === "online" || this.#state === "connecting") return;
    this.#failures = 0;
    this.#connect();
  }

  /** Ends the connection for good. */
  close() {
    if (this.#state === "closed") return;
    this.#page?.removeEventListener("online", this.#wake);
    this.#page?.removeEventListener("visibilitychange", this.#wake);
    this.#page?.removeEventListener("pagehide", this.#suspend);
    this.#page?.removeEventListener("pageshow", this.#resume);
    this.#stop("closed", {});
  }

  // ---- Connecting -----------------------------------------------------------------------------------------------

  async #connect() {
    clearTimeout(this.#retry);
    this.#retry = null;
    this.#suspended = false;
    this.#attemptedAt = performance.now();
    const attempt = ++this.#attempt;
    if (!this.#current) this.#setState("connecting");
    const forceRefresh = this.#forceRefresh;
    let token;
    try {
      token = await within(this.#timing.token, () => this.#options.getToken({ forceRefresh }));
    } catch (cause) {
      if (attempt !== this.#attempt) return;
      this.#emit("error", { code: "token_unavailable", detail: String(cause?.message ?? cause) });
      this.#backOff();
      return;
    }
    if (attempt !== this.#attempt) return;
    if (this.#current) {
      // The relay drops what reaches the other device behind the new socket's claim, and what was sent here last may
      // still be on its way then, through another instance: nothing reliable from now on, and not a new socket before
      // the old one's relay has handed on the rest.
      this.#atBarrier = true;
      await this.#current.barrier(this.#timing.barrier);
      this.#atBarrier = false;
      if (attempt !== this.#attempt) return this.#flush();
    }
    try {
      if (typeof token !== "string" || token === "") throw new TypeError("getToken gave no token");
      this.#next = new Link(this.#options.WebSocket ?? globalThis.WebSocket, this.#socketUrl(), token, this.#timing, {
        onFrame: (link, streamId, bytes) => this.#onFrame(link, streamId, bytes),
        onControl: (link, message) => this.#onControl(link, message),
        onGone: (link, code, reason) => this.#onGone(link, code, reason, { attempt, token, forceRefresh }),
      });
    } catch (cause) {
      // Browsers throw a SyntaxError for what cannot stand in Sec-WebSocket-Protocol.
      this.#onRefusal({ status: 0, code: token ? "malformed_token" : "missing_token", detail: String(cause) }, forceRefresh);
      return;
    }
    if (this.#current) this.#current.successorTried = true;
  }

  #socketUrl(tab = this.#tab) {
    const url = new URL(this.#options.url ?? "/ws", globalThis.location?.href);
    url.protocol = url.protocol.replace(/^http/, "ws");
    if (this.#options.device) url.searchParams.set("device", this.#options.device);
    url.searchParams.set("client", tab.id);
    return url;
  }

  /** A handshake ended before it opened, and the browser does not say why: the relay does, over HTTP. */
  async #askWhy({ attempt, token, forceRefresh }) {
    const url = new URL("v1/session", this.#socketUrl());
    url.protocol = url.protocol.replace(/^ws/, "http");
    let refusal;
    try {
      refusal = await within(this.#timing.session, async (signal) => {
        const fetch = this.#options.fetch ?? globalThis.fetch;
        const response = await fetch(url, { headers: { authorization: `Bearer ${token}` }, cache: "no-store", signal });
        if (response.ok) return null;
        const problem = await response.json().catch(() => null);
        return {
          status: response.status,
          code: problem?.code ?? "",
          detail: problem?.detail ?? "",
          retryAfterMs: retryAfterMs(response.headers.get("retry-after")),
        };
      });
    } catch {
      refusal = null; // the network is broken, for HTTP too
    }
    if (attempt !== this.#attempt) return;
    if (refusal) this.#onRefusal(refusal, forceRefresh);
    else this.#backOff();
  }

  #onRefusal(refusal, tokenWasFresh) {
    const curable = TOKEN_REFUSALS.has(refusal.code) && !tokenWasFresh;
    // With a connection that still works there is nothing to stop: only its replacement failed.
    const final = !this.#current && !curable && (TOKEN_REFUSALS.has(refusal.code) || FINAL_REFUSALS.has(refusal.code));
    if (final) this.#stop("refused", { code: refusal.code, detail: refusal.detail });
    this.#emit("refused", { ...refusal, final });
    if (final || this.#state === "closed") return;
    if (curable) {
      this.#forceRefresh = true;
      return this.#retryIn(0);
    }
    if (refusal.retryAfterMs === null || refusal.retryAfterMs === undefined) return this.#backOff();
    const ordered = Math.min(refusal.retryAfterMs, this.#timing.retryAfterMax);
    this.#retryIn(ordered + this.#fullJitter(), { ordered: true });
  }

  #onGone(link, code, reason, attempt) {
    if (link === this.#old) return this.#oldIsGone();
    const wasCurrent = link === this.#current;
    if (!wasCurrent && link !== this.#next) return;
    if (link.stable) this.#failures = 0;
    if (wasCurrent) {
      this.#current = null;
      this.#volatile.clear();
      clearTimeout(this.#refresh);
      this.#oldIsGone();
    } else {
      this.#next = null;
    }

    let after = AFTER_CLOSE[code] ?? {};
    const handedOver = after.stop === "overwritten" && link.successorTried && link.overwrittenBy?.same_client !== false;
    if (handedOver) after = {}; // to our own next socket, which is on its way or has failed
    if (after.forceRefresh) this.#forceRefresh = true;
    const stops = after.stop !== undefined && (!this.#current || after.stop === "overwritten");
    const trying = wasCurrent && this.#retry === null && this.#attempt > attempt.attempt;
    if (handedOver && trying) return; // still online: the next socket's welcome is a moment away

    if (stops && after.stop === "overwritten") {
      this.#stop("overwritten", { code: "overwritten" });
      this.#emit("overwritten", link.overwrittenBy);
    } else if (stops) {
      const refusal = { code: code === 1002 && !link.welcome ? "unsupported_protocol" : after.stop, detail: reason };
      this.#stop("refused", refusal);
      this.#emit("refused", { status: 0, ...refusal, final: true });
    } else if (trying) {
      this.#setState("connecting");
    } else if (!link.opened) {
      this.#askWhy(attempt); // a browser says 1006 and nothing else
    } else if (after.wait === "long") {
      this.#retryIn(this.#timing.policy * (1 + Math.random()), { ordered: true });
    } else if (after.wait === "jitter" && this.#failures === 0) {
      this.#failures = 1; // when it happens again soon, it is a loop: then with back-off
      this.#retryIn(Math.random() * this.#timing.restart);
    } else {
      this.#backOff();
    }
    if (wasCurrent) this.#emit("close", { code, reason, willReconnect: !stops });
    this.#flush(); // what the failed replacement held back may go on
  }

  #fullJitter() {
    const { backoff, backoffMax } = this.#timing;
    return Math.random() * Math.min(backoffMax, backoff * 2 ** this.#failures++);
  }

  #backOff() {
    this.#retryIn(this.#fullJitter());
  }

  /** `ordered`: the relay named the time; a page that wakes up does not shorten it. */
  #retryIn(ms, { ordered = false } = {}) {
    if (this.#state === "closed") return; // a listener had enough
    clearTimeout(this.#retry);
    this.#attempt += 1; // what is still awaited for an earlier attempt is void
    this.#retryIsOrdered = ordered;
    this.#retry = setTimeout(() => this.#connect(), ms);
    if (!this.#current) this.#setState("waiting", { retryInMs: ms });
  }

  #stop(state, info) {
    this.#attempt += 1;
    clearTimeout(this.#retry);
    clearTimeout(this.#refresh);
    clearTimeout(this.#drain);
    this.#retry = this.#drain = null;
    this.#suspended = false;
    this.#oldIsGone();
    for (const link of [this.#next, this.#current]) link?.end();
    this.#next = this.#current = null;
    this.#volatile.clear();
    const unsent = this.#queue.length;
    this.#queue = [];
    this.#queuedBytes = 0;
    this.#forceRefresh = false;
    if (unsent > 0) this.#emit("error", { code: "unsent", detail: `${unsent} reliable messages were not sent` });
    this.#setState(state, info);
  }

  // ---- The page -------------------------------------------------------------------------------------------------

  /** The page became visible or the network came back: no reason to wait, and every reason to doubt the link. */
  #wake = () => {
    if (this.#page.document?.visibilityState === "hidden") return;
    if (this.#current) {
      this.#current.probe(this.#timing.probe);
    } else if (this.#retry !== null && !this.#retryIsOrdered) {
      // At most one attempt a second, however often a user switches tabs.
      this.#retryIn(Math.max(0, this.#attemptedAt + 1000 - performance.now()));
    }
  };

  /** Going, perhaps into the back/forward cache, where an open socket would not be allowed or would freeze. */
  #suspend = () => {
    if (!["connecting", "online", "waiting"].includes(this.#state)) return;
    clearTimeout(this.#retry);
    clearTimeout(this.#refresh);
    this.#attempt += 1;
    this.#suspended = true;
    this.#oldIsGone();
    for (const link of [this.#next, this.#current]) link?.end();
    this.#next = this.#current = this.#retry = null;
    this.#volatile.clear();
    this.#setState("waiting", { retryInMs: null });
  };

  #resume = ({ persisted }) => {
    if (!persisted || !this.#suspended) return;
    this.#suspended = false;
    this.#connect();
  };

  // ---- Receiving ------------------------------------------------------------------------------------------------

  #onFrame(link, streamId, bytes) {
    if (streamId >= RELIABLE) return this.#inOrder(link, () => this.#emit("frame", streamId, bytes));
    // After a hand-over the old socket may still hold a frame older than one that the new socket brought.
    if (link === this.#old && this.#newerStreams.has(streamId)) return;
    if (link === this.#current && this.#old) this.#newerStreams.add(streamId);
    this.#emit("frame", streamId, bytes);
  }

  #onControl(link, message) {
    if (message.type === "welcome") return this.#onWelcome(link, message);
    if (message.type === "message") return this.#inOrder(link, () => this.#emit("message", message));
    if (message.type === "overwritten") {
      // What waited for this socket came before this message; close 4001 follows and says nothing new.
      link.overwrittenBy = message.by;
      return link.fail(4001, "overwritten");
    }
    if (link !== this.#current) return;
    switch (message.type) {
      case "peer":
        if (message.state === "connected") this.#setPeer({ device: message.device, connection: message.connection, generation: message.generation });
        else if (this.#peer?.connection === message.connection) this.#setPeer(null);
        break;
      case "expiring":
        this.#expiresAt = message.expires_at;
        this.#refreshSoon();
        this.#emit("expiring", message);
        break;
      case "authenticated":
        this.#expiresAt = message.expires_at;
        this.#emit("authenticated", message);
        break;
      case "backplane":
        this.#backplane = message.state;
        this.#emit("backplane", message.state);
        break;
      case "reconnect":
        // A replacement that is already on its way is as good as one that starts later.
        if (!this.#next && !this.#atBarrier) {
          this.#failures = 0;
          this.#retryIn(message.in_ms, { ordered: true });
        }
        this.#emit("reconnect", message);
        break;
      case "error":
        this.#emit("error", message);
        break;
      case "pong":
        this.#emit("rtt", link.rtt);
        break;
      default: // a newer relay says more than we know
    }
  }

  #onWelcome(link, welcome) {
    this.#oldIsGone();
    if (link !== this.#next) return; // a listener had enough
    this.#old = this.#current;
    this.#old?.linger();
    this.#current = link;
    this.#next = null;
    this.#messageBytes = welcome.limits.message_bytes;
    clearTimeout(this.#refresh);
    this.#forceRefresh = false;
    this.#expiresAt = welcome.expires_at;
    this.#backplane = "up"; // the relay tells when it is not
    this.#setState("online");
    this.#emit("welcome", welcome);
    this.#setPeer(welcome.peer && { device: welcome.device === "desktop" ? "mobile" : "desktop", ...welcome.peer });
    if (this.#current === link) link.probe(this.#timing.silence);
    this.#flush();
  }

  /** Delivers what is reliable; of a new link only after the rest of the link that it replaced. */
  #inOrder(link, deliver) {
    if (link === this.#current && this.#old) {
      this.#inbox.push(deliver);
      if (this.#inbox.length >= QUEUE_MESSAGES) this.#oldIsGone();
    } else {
      deliver();
    }
  }

  #oldIsGone() {
    this.#old?.end();
    this.#old = null;
    this.#newerStreams.clear();
    for (const deliver of this.#inbox.splice(0)) deliver();
  }

  // ---- Token ----------------------------------------------------------------------------------------------------

  #refreshSoon() {
    // A provider may give tokens that live shorter than the relay's warning time: then not again and again at once.
    const again = performance.now() - this.#refreshedAt < 30_000;
    const left = this.#expiresAt * 1000 - Date.now();
    this.#refreshIn(again ? Math.max(5_000, left / 2) : 0);
  }

  #refreshIn(ms) {
    clearTimeout(this.#refresh);
    this.#refresh = setTimeout(() => this.#refreshNow(), ms);
  }

  async #refreshNow() {
    const link = this.#current;
    this.#refreshedAt = performance.now();
    try {
      const token = await within(this.#timing.token, () => this.#options.getToken({ forceRefresh: true }));
      if (link === this.#current) link?.say({ type: "auth", token });
    } catch (cause) {
      if (link === null || link !== this.#current) return;
      this.#emit("error", { code: "token_unavailable", detail: String(cause?.message ?? cause) });
      if (link === this.#current) this.#refreshIn(5_000 + Math.random() * 10_000); // close 4003 ends it
    }
  }

  // ---- Sending --------------------------------------------------------------------------------------------------

  #checkSize(size) {
    // The relay would end the connection for good (1009).
    if (size > this.#messageBytes) throw new SendError("too_big", `${size} bytes are over the relay's limit of ${this.#messageBytes}`);
  }

  #enqueue(message, size) {
    if (!["connecting", "online", "waiting"].includes(this.#state)) throw new SendError("not_connected", `the relay connection is ${this.#state}`);
    if (this.#queue.length >= QUEUE_MESSAGES || this.#queuedBytes + size > this.#options.queueBytes) {
      throw new SendError("queue_full", "too many reliable messages wait to be sent");
    }
    this.#queue.push({ message, size });
    this.#queuedBytes += size;
  }

  #flush() {
    clearTimeout(this.#drain);
    this.#drain = null;
    const ws = this.#current?.ws;
    if (ws?.readyState !== 1) return;
    for (const [streamId, message] of this.#volatile) {
      // Even a frame over the limit goes out when nothing is before it.
      if (ws.bufferedAmount > 0 && ws.bufferedAmount + message.length > VOLATILE_ROOM) break;
      this.#volatile.delete(streamId);
      ws.send(message);
    }
    // Nothing reliable from the barrier before the next socket until its welcome: after the claim the relay drops
    // what still comes on this one. And nothing that would keep a waiting volatile frame from its turn.
    const held = this.#next !== null || this.#atBarrier;
    while (!held && this.#volatile.size === 0 && this.#queue.length > 0 && ws.bufferedAmount < RELIABLE_ROOM) {
      const { message, size } = this.#queue.shift();
      this.#queuedBytes -= size;
      if (size <= this.#messageBytes) ws.send(message);
      else this.#emit("error", { code: "too_big", detail: `${size} bytes, queued before the relay told its limit` });
    }
    if (this.#volatile.size > 0 || (!held && this.#queue.length > 0)) {
      this.#drain = setTimeout(() => this.#flush(), this.#timing.poll);
    }
  }

  // ---- Telling --------------------------------------------------------------------------------------------------

  #setPeer(peer) {
    if (peer?.connection === this.#peer?.connection) return;
    this.#peer = peer ?? null;
    this.#emit("peer", this.#peer);
  }

  #setState(state, info = {}) {
    if (this.#state === "closed" || (state === this.#state && state !== "waiting")) return;
    this.#state = state;
    if (state !== "online") this.#setPeer(null); // nobody tells us any more
    this.#emit("state", state, info);
  }

  #emit(type, ...details) {
    for (const listener of this.#listeners.get(type) ?? []) {
      try {
        listener(...details);
      } catch (cause) {
        // A listener's mistake must not break the connection.
        (globalThis.reportError ?? console.error)(cause);
      }
    }
  }
}

/** `work(signal)`, or an error once `ms` are over. */
async function within(ms, work) {
  const abort = new AbortController();
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`no answer within ${ms} ms`));
      abort.abort();
    }, ms);
  });
  try {
    return await Promise.race([Promise.resolve().then(() => work(abort.signal)), limit]);
  } finally {
    clearTimeout(timer);
  }
}

/** Retry-After in milliseconds: seconds or an HTTP date (RFC 9110 section 10.2.3); null when absent or neither. */
function retryAfterMs(value) {
  if (value === null || value === undefined || value.trim() === "") return null;
  const ms = /^\d+$/.test(value.trim()) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isNaN(ms) ? null : Math.max(0, ms);
}

/** crypto.randomUUID is missing on plain http pages, where a phone of the local network often is. */
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Null where there is none: Node, or a browser that blocks site data (then the very access throws). */
function sessionStorageIfAllowed() {
  try {
    return globalThis.window?.sessionStorage ?? null;
  } catch {
    return null;
  }
}
