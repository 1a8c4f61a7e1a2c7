import { attemptUrls, isMixedContent, relayAddress } from "./address.js";
import { decide, isTokenRefusal } from "./decide.js";
import { environment, randomHex } from "./environment.js";
import { SendError } from "./errors.js";
import { Events } from "./events.js";
import { affinityOf, NamedClient, TabClient, userOf } from "./identity.js";
import { Inbox, RELIABLE } from "./inbox.js";
import { Link } from "./link.js";
import { Pacing } from "./pacing.js";
import { PageEvents } from "./page.js";
import { Sender } from "./sender.js";
import { TIMING } from "./timing.js";
import { Tokens } from "./tokens.js";
import { retryAfterMs, within } from "./within.js";

/** Where it goes on by itself. */
const ALIVE = new Set(["connecting", "online", "waiting"]);

/** A connection to the relay that outlives its sockets. */
export class DuoRelay {
  #options;
  #env;
  #timing;
  #address;
  #client;
  #tokens;
  #sender;
  #inbox = new Inbox();
  #events = new Events();
  #page;
  #log;
  #state = "connecting";

  // Links. `next` is being opened, `current` was welcomed, `old` is what `current` replaced and still delivers its rest.
  #next = null;
  #current = null;
  #old = null;

  // When to try next. Each attempt has a number: what an earlier one still awaits is void.
  #attempt = 0;
  #failures = 0;
  #unwelcomed = 0; // attempts in a row without a welcome
  #blocked = 0; //    handshakes in a row that failed although the relay would have taken them
  #forceRefresh = false;
  #retry = null;
  #retryAt = Infinity;
  #retryIsOrdered = false;
  #attemptedAt = -Infinity;
  #reclaimedAt = -Infinity;
  #atBarrier = false; // a replacement is due and waits for the current link's barrier
  #suspended = false;
  #checking = false;
  #checkLater = false;

  #direct = null;
  #peer = null;
  #expiresAt = null;
  #backplane = "up";

  constructor(options) {
    const { device, getToken } = options;
    if (typeof getToken !== "function") throw new TypeError("duorelay needs a getToken function");
    if (device !== undefined && device !== "desktop" && device !== "mobile") throw new TypeError(`unknown device: ${device}`);
    this.#options = options;
    const env = (this.#env = environment(options));
    this.#timing = { ...TIMING, ...options.timing };
    this.#address = relayAddress(options.url, env.location);
    if (typeof env.WebSocket !== "function") {
      throw new TypeError("there is no WebSocket here: give options.WebSocket (before Node 22, that of the package ws)");
    }
    const { client, debug } = options;
    this.#client = client === undefined ? TabClient.ofThisPage() : new NamedClient(client, env.storage);
    this.#log = typeof debug === "function" ? debug : debug ? (...words) => console.debug("duorelay:", ...words) : () => {};
    this.#tokens = new Tokens(getToken, env, this.#timing);
    this.#sender = new Sender(env, this.#timing, options.queueBytes ?? 1024 * 1024, {
      route: () => this.#route(),
      checkAlive: () => this.#checkAlive(),
      emit: (type, detail) => this.#emit(type, detail),
    });
    this.#page = new PageEvents(env.page, {
      wake: () => this.wake(),
      hide: () => this.#suspend(),
      forbidden: (address) => this.#onForbidden(address),
    });
    if (options.direct) this.#startDirect();
    this.#connect();
  }

  get state() { return this.#state; }
  get client() { return this.#client.id; }
  get welcome() { return this.#current?.welcome ?? null; }
  get peer() { return this.#peer; }
  get expiresAt() { return this.#expiresAt; }
  get backplane() { return this.#backplane; }
  get rtt() { return this.#current?.rtt ?? null; }
  get delay() { return { up: this.#current?.delay.up ?? null, down: this.#current?.delay.down ?? null, direct: this.#direct?.delay ?? null }; }
  get path() { return this.#direct?.path ?? "relay"; }
  get dropped() { return this.#sender.dropped; }
  get queued() { return this.#sender.queued; }

  /** Calls `listener` at each `type` event; the returned function ends that. */
  on(type, listener) {
    return this.#events.on(type, listener);
  }

  /** Sends `bytes` on a stream. False: a volatile frame had no connection to go to. */
  frame(streamId, bytes) {
    return this.#sender.frame(streamId, bytes);
  }

  /**
   * Sends any JSON value to the other device, reliably. `id` comes back in an `error` about it. With `ack`, a promise for
   * the other device's library having delivered it.
   */
  send(data, options) {
    return this.#sender.send(data, options);
  }

  /** Resolves once at most half of the reliable queue is taken, so that a file goes out chunk by chunk. */
  drained() {
    return this.#sender.drained();
  }

  /**
   * Tries now: after it stopped, or instead of waiting for the next attempt. Online, it looks at the token again: one of
   * another user ends the connection and opens that user's.
   */
  connect() {
    if (this.#state === "closed") throw new SendError("not_connected", "this relay was closed");
    if (this.#state === "connecting") this.#checkLater = true; // the token on its way may be an earlier user's
    else if (this.#state === "online") this.#checkUser();
    else {
      this.#failures = 0;
      this.#connect();
    }
  }

  /** Nobody is signed in any more: ends the connection at once. `connect()` goes on. */
  signedOut() {
    if (this.#state === "closed") return;
    this.#tokens.user = null;
    this.#stop("signed_out", { code: "signed_out", detail: "nobody is signed in" });
  }

  /** The network has changed or the app is in the foreground again: looks at once whether the path still works. */
  wake() {
    const since = this.#env.now() - this.#attemptedAt;
    if (this.#suspended || (this.#state === "signed_out" && since >= this.#timing.wake)) return void this.#connect();
    if (this.#current) return this.#current.probe();
    if (this.#retry !== null && !this.#retryIsOrdered) {
      this.#failures = 0; // of a network that is another one now
      this.#retryIn({ wait: [0, 0], code: "wake", detail: "the network is back" }, Math.max(0, this.#timing.wake - since));
    } else if (this.#state === "connecting" && !this.#next?.opened && since >= this.#timing.wake) {
      // It may hang on the path that was left: the token, the handshake, the question why it failed. The relay drops the
      // handshake if it arrives after its successor.
      this.#next?.end();
      this.#next = null;
      this.#connect();
    }
  }

  /** Ends the connection for good. */
  close() {
    if (this.#state === "closed") return;
    this.#page.stop();
    this.#stop("closed", {});
    this.#direct?.stop();
  }

  // ---- Connecting -----------------------------------------------------------------------------------------------

  async #connect() {
    this.#clearRetry();
    this.#suspended = false;
    this.#attemptedAt = this.#env.now();
    const attempt = ++this.#attempt;
    // Nobody is signed in until getToken says otherwise: no state that comes and goes.
    if (!this.#current && this.#state !== "signed_out") this.#setState("connecting");
    const forceRefresh = this.#forceRefresh;
    let token;
    try {
      token = await this.#tokens.ask(forceRefresh);
    } catch (cause) {
      if (attempt !== this.#attempt) return;
      const failure = { code: "token_unavailable", detail: String(cause?.message ?? cause) };
      this.#emit("error", failure);
      if (attempt === this.#attempt) this.#carryOut(this.#decide({ type: "failed", ...failure }));
      return;
    }
    if (attempt !== this.#attempt) return;
    if (token === null) return this.signedOut();
    if (this.#tokens.isOfAnother(token)) return this.#connectAnew(userOf(token));
    this.#tokens.user = userOf(token);
    if (this.#current) {
      // The relay drops what reaches the other device behind the new socket's claim, and what was sent here last may
      // still be on its way then, through another instance: nothing reliable from now on, and not a new socket before
      // the old one's relay has handed on the rest.
      this.#atBarrier = true;
      await this.#current.barrier(this.#timing.barrier);
      this.#atBarrier = false;
      if (attempt !== this.#attempt) return this.#sender.flush();
    } else {
      this.#setState("connecting");
    }
    if (isMixedContent(this.#address, this.#env.location)) {
      return this.#onRefusal("not_allowed", "a page by https may not open a WebSocket without TLS: use wss://", forceRefresh);
    }
    const urls = attemptUrls(this.#address, {
      device: this.#options.device,
      client: this.#client.id,
      attempt: this.#client.attempts.next(this.#env.clock()),
      // Twice without a welcome, the instance that a balancer chooses by it may be full or leaving.
      affinity: this.#tokens.user !== null && this.#unwelcomed < 2 ? affinityOf(this.#tokens.user) : undefined,
    });
    this.#unwelcomed += 1;
    this.#log("attempt", this.#attempt);
    try {
      this.#next = new Link(urls.socket, token, this.#timing, this.#env, {
        onFrame: (link, streamId, bytes) => this.#onFrame(link, streamId, bytes),
        onControl: (link, message) => this.#onControl(link, message),
        onGone: (link, code, reason) => this.#onGone(link, code, reason, { attempt, token, forceRefresh, url: urls.session }),
      });
    } catch (cause) {
      // The URL was looked at before: a SyntaxError is about what cannot stand in Sec-WebSocket-Protocol. Anything else is
      // a veto, which has a name of its own in each browser.
      const code = token === "" ? "missing_token" : cause?.name === "SyntaxError" ? "malformed_token" : "not_allowed";
      return this.#onRefusal(code, String(cause), forceRefresh);
    }
    if (this.#current) this.#current.succeeded = true;
  }

  /** Online, the app says that the token may be another one. */
  async #checkUser() {
    if (this.#checking) return;
    this.#checking = true;
    this.#checkLater = false;
    const link = this.#current;
    const token = await this.#tokens.ask(false).catch(() => undefined);
    this.#checking = false;
    if (token === undefined || link !== this.#current || this.#state !== "online") return;
    if (token === null) return this.signedOut();
    if (this.#tokens.isOfAnother(token)) this.#connectAnew(userOf(token));
  }

  /** Nothing of one user's may reach another user's devices: not the link, and not what waits to be sent. */
  #connectAnew(user) {
    const why = "another user has signed in";
    const wasOnline = this.#current !== null;
    this.#tokens.user = user;
    this.#dropLinks();
    this.#dropQueue(why);
    this.#setState("connecting");
    if (wasOnline) this.#emit("close", { code: 1000, reason: why, willReconnect: true });
    if (ALIVE.has(this.#state)) this.#connect();
  }

  /** A handshake ended before it opened, and the browser does not say why: the relay does, over HTTP. */
  async #askWhy({ attempt, token, forceRefresh, url }) {
    let event = { type: "failed", code: "network", detail: "the relay cannot be reached" };
    try {
      event = await within(this.#env, this.#timing.session, async (signal) => {
        const response = await this.#env.fetch(url, { headers: { authorization: `Bearer ${token}` }, cache: "no-store", signal });
        if (response.ok) return { type: "failed", code: "handshake", detail: "the handshake failed" };
        const problem = (await response.json().catch(() => null)) ?? {};
        return {
          type: "refused",
          status: response.status,
          code: problem.code ?? "",
          detail: problem.detail ?? "",
          attempt: problem.attempt,
          retryAfterMs: retryAfterMs(response.headers.get("retry-after"), this.#env.clock()),
        };
      });
    } catch {} // the network is broken, for HTTP too
    if (attempt !== this.#attempt) return;
    if (event.type === "refused") return this.#onRefusal(event.code, event.detail, forceRefresh, event);
    this.#blocked = event.code === "handshake" ? this.#blocked + 1 : 0;
    if (this.#blocked >= 2) {
      event.code = "upgrade_blocked";
      event.detail = "the relay answers over HTTP, but something between here and it does not let WebSockets through";
      this.#emit("refused", { status: 0, code: event.code, detail: event.detail, final: false });
    }
    if (attempt === this.#attempt) this.#carryOut(this.#decide(event));
  }

  #onRefusal(code, detail, tokenWasFresh, more = {}) {
    this.#blocked = 0;
    this.#client.attempts.goAbove(more.attempt);
    const next = this.#decide({ ...more, type: "refused", code, detail, tokenWasFresh });
    const { status = 0, retryAfterMs = null } = more;
    const attempt = this.#attempt;
    if (next.do === "stop") this.#stop(next.state, next);
    this.#emit("refused", { status, code, detail, retryAfterMs, final: next.do === "stop" });
    if (next.do !== "stop" && attempt === this.#attempt) this.#carryOut(next);
  }

  #onGone(link, code, reason, attempt) {
    this.#log("closed", code, reason);
    if (link === this.#old) return this.#oldIsGone();
    const wasCurrent = link === this.#current;
    if (!wasCurrent && link !== this.#next) return;
    if (link.stable) this.#failures = 0;
    if (wasCurrent) {
      this.#current = null;
      this.#direct?.setPair(null, null);
      this.#sender.dropVolatile();
      this.#tokens.stop();
      this.#oldIsGone();
    } else {
      this.#next = null;
    }
    const next = this.#decide({
      type: "closed",
      code,
      reason,
      by: link.overwrittenBy,
      opened: link.opened,
      welcomed: link.welcome !== null,
      succeeded: link.succeeded,
      reclaimed: this.#env.now() - this.#reclaimedAt,
    }, wasCurrent && this.#retry === null && this.#attempt > attempt.attempt);
    if (next.do === "nothing" && code === 4001) return; // still online: the next socket's welcome is a moment away
    const stops = next.do === "stop";
    if (stops) this.#stop(next.state, next);
    if (stops && next.state === "overwritten") this.#emit("overwritten", link.overwrittenBy);
    else if (stops) this.#emit("refused", { status: 0, code: next.code, detail: next.detail, final: true });
    else if (next.do === "ask") this.#askWhy(attempt);
    else this.#carryOut(next);
    if (wasCurrent) this.#emit("close", { code, reason, willReconnect: !stops });
    this.#sender.flush(); // what the failed replacement held back may go on
  }

  #decide(event, trying = this.#next !== null || this.#atBarrier) {
    return decide(event, { live: this.#current !== null, trying, failures: this.#failures }, this.#timing);
  }

  #carryOut(next) {
    if (next.forceRefresh) this.#forceRefresh = true;
    if (next.do === "nothing") {
      if (!this.#current) this.#setState("connecting");
      return;
    }
    this.#failures = next.failures;
    if (next.reclaim) this.#reclaimedAt = this.#env.now();
    const [least, most] = next.wait;
    this.#retryIn(next, least + this.#env.random() * (most - least));
  }

  #retryIn({ ordered = false, code, detail }, ms) {
    if (this.#state === "closed") return; // a listener had enough
    this.#env.clearTimeout(this.#retry);
    this.#attempt += 1; // what is still awaited for an earlier attempt is void
    this.#retryIsOrdered = ordered;
    this.#retryAt = this.#env.now() + ms;
    this.#retry = this.#env.setTimeout(() => this.#connect(), ms);
    if (!this.#current) this.#setState("waiting", { retryInMs: ms, code, detail });
  }

  #clearRetry() {
    this.#env.clearTimeout(this.#retry);
    this.#retry = null;
    this.#retryAt = Infinity;
  }

  /** A hidden page's timers may be a minute late; what arrives meanwhile tells the time too. */
  #lookAtClock() {
    if (this.#env.now() >= this.#retryAt) this.#connect();
  }

  #stop(state, { code, detail }) {
    this.#suspended = false;
    this.#forceRefresh = false;
    this.#dropLinks();
    this.#dropQueue(`it is ${state}`);
    this.#setState(state, state === "closed" ? {} : { code, detail });
  }

  /** Ends all links, and voids what any attempt still awaits. */
  #dropLinks() {
    this.#attempt += 1;
    this.#clearRetry();
    this.#tokens.stop();
    this.#oldIsGone();
    this.#direct?.setPair(null, null);
    for (const link of [this.#next, this.#current]) link?.end();
    this.#next = this.#current = null;
    this.#sender.dropVolatile();
  }

  #dropQueue(why) {
    const unsent = this.#sender.clear(why);
    if (unsent > 0) this.#emit("error", { code: "unsent", detail: `${unsent} reliable messages were not sent: ${why}` });
  }

  // ---- The page -------------------------------------------------------------------------------------------------

  /** Going, perhaps into the back/forward cache, where an open socket would not be allowed or would freeze. */
  #suspend() {
    if (!ALIVE.has(this.#state)) return;
    this.#suspended = true;
    this.#dropLinks();
    this.#setState("waiting", { retryInMs: null, code: "hidden", detail: "the page is hidden" });
  }

  #onForbidden(address) {
    if (this.#current || !address.includes(`//${this.#address.host}`)) return;
    this.#next?.end();
    this.#next = null;
    this.#attempt += 1;
    this.#onRefusal("not_allowed", `the page's Content-Security-Policy lacks ${this.#address.host} in connect-src`, false);
  }

  // ---- Receiving ------------------------------------------------------------------------------------------------

  #onFrame(link, streamId, bytes) {
    this.#lookAtClock();
    if (streamId >= RELIABLE) return this.#inOrder(link, () => this.#emit("frame", streamId, bytes));
    if (this.#old && !this.#inbox.isFresh(streamId, link === this.#old ? "old" : "new")) return;
    if (this.#direct && !this.#direct.onRelayFrame(streamId, bytes, link !== this.#current)) return;
    this.#emit("frame", streamId, bytes);
  }

  #onControl(link, message) {
    this.#lookAtClock();
    switch (message.type) {
      case "welcome":
        return this.#onWelcome(link, message);
      case "message":
        return this.#inOrder(link, () => this.#deliver(message));
      case "acked":
        return this.#sender.acked(message.id);
      case "overwritten":
        // What waited for this socket came before this message; close 4001 follows and says nothing new.
        link.overwrittenBy = message.by;
        return link.fail(4001, "overwritten");
      case "error":
        return this.#onError(link, message);
    }
    if (link !== this.#current) return;
    switch (message.type) {
      case "peer":
        if (message.state === "connected") this.#setPeer({ device: message.device, connection: message.connection, generation: message.generation });
        else if (this.#peer?.connection === message.connection) this.#setPeer(null);
        return this.#sender.goOn();
      case "signal":
        return this.#direct?.onSignal(message);
      case "pressure":
        return message.state === "high" ? this.#sender.hold() : this.#sender.goOn();
      case "expiring":
        this.#expiresAt = message.expires_at;
        this.#tokens.refreshBefore(message.expires_at, () => this.#refresh());
        return this.#emit("expiring", message);
      case "authenticated":
        this.#expiresAt = message.expires_at;
        return this.#emit("authenticated", message);
      case "backplane":
        this.#backplane = message.state;
        return this.#emit("backplane", message.state);
      case "reconnect": {
        const next = this.#decide({ type: "reconnect", inMs: message.in_ms });
        if (next.do === "retry") this.#carryOut(next);
        return this.#emit("reconnect", message);
      }
      case "pong":
        this.#direct?.onPong(Number(message.id));
        this.#emit("rtt", link.rtt);
        this.#emit("delay", this.delay);
        return this.#sender.flush();
      case "received": // the window may be open again
        return this.#sender.flush();
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
    this.#unwelcomed = this.#blocked = 0;
    this.#sender.messageBytes = welcome.limits.message_bytes;
    this.#tokens.stop();
    this.#forceRefresh = false;
    this.#expiresAt = welcome.expires_at;
    this.#backplane = "up"; // the relay tells when it is not
    this.#setState("online");
    this.#emit("welcome", welcome);
    this.#setPeer(welcome.peer && { device: welcome.device === "desktop" ? "mobile" : "desktop", ...welcome.peer });
    this.#sender.goOn();
    if (this.#checkLater) this.#checkUser();
  }

  /** Hands a message to the listeners; what the other device waits for is answered then, and not before. */
  #deliver(message) {
    const heard = this.#emit("message", message);
    if (!message.ack || !heard || !this.#current?.has("ack")) return;
    this.#sender.acknowledge(message.id);
  }

  #onError(link, message) {
    if (this.#direct?.isOwn(message)) return;
    this.#sender.failed(message);
    if (link !== this.#current) return;
    this.#emit("error", message);
    if (message.code === "wrong_user") this.#connectAnew(null);
    else if (isTokenRefusal(message.code)) this.#tokens.refreshAgain(() => this.#refresh());
  }

  /** Delivers what is reliable; of a new link only after the rest of the link that it replaced. */
  #inOrder(link, deliver) {
    if (link !== this.#current || !this.#old) return deliver();
    this.#inbox.hold(deliver);
    if (this.#inbox.isFull) this.#oldIsGone();
  }

  #oldIsGone() {
    this.#old?.end();
    this.#old = null;
    this.#inbox.release();
  }

  // ---- Token ----------------------------------------------------------------------------------------------------

  async #refresh() {
    const link = this.#current;
    let token;
    try {
      token = await this.#tokens.ask(true);
    } catch (cause) {
      if (link === null || link !== this.#current) return;
      this.#emit("error", { code: "token_unavailable", detail: String(cause?.message ?? cause) });
      if (link === this.#current) this.#tokens.refreshAgain(() => this.#refresh());
      return;
    }
    if (link === null || link !== this.#current) return;
    if (token === null) this.signedOut();
    else if (this.#tokens.isOfAnother(token)) this.#connectAnew(userOf(token));
    else link.say({ type: "auth", token });
  }

  // ---- Sending --------------------------------------------------------------------------------------------------

  #checkAlive() {
    if (!ALIVE.has(this.#state)) throw new SendError("not_connected", `the relay connection is ${this.#state}`);
  }

  /** Which way what is sent takes now; null without a connection. */
  #route() {
    if (!this.#current) return null;
    // Nothing reliable from the barrier before the next socket until its welcome: after the claim the relay drops what
    // still comes on this one.
    return { link: this.#current, path: this.#direct?.route(this.#current) ?? this.#current, held: this.#next !== null || this.#atBarrier };
  }

  /** A file of its own, so that pages without the direct path load nothing of it. */
  async #startDirect() {
    try {
      const { Direct } = await import("./duorelay-direct.js");
      if (this.#state === "closed") return;
      this.#direct = Direct.of({ Pacing, randomHex }, this.#env, this.#options.timing, {
        link: () => this.#current,
        emit: (...event) => this.#emit(...event),
        flush: () => this.#sender.flush(),
      });
      this.#direct?.setPair(this.#current?.welcome, this.#peer);
    } catch (cause) {
      this.#log("no direct path", cause);
    }
  }

  // ---- Events ---------------------------------------------------------------------------------------------------

  #setPeer(peer) {
    this.#direct?.setPair(this.#current?.welcome, peer);
    if (peer?.connection === this.#peer?.connection) return;
    this.#peer = peer ?? null;
    this.#emit("peer", this.#peer);
  }

  #setState(state, info = {}) {
    if (this.#state === "closed" || (state === this.#state && state !== "waiting")) return;
    this.#state = state;
    this.#log(state, info);
    if (state !== "online") this.#setPeer(null); // nobody tells us any more
    this.#emit("state", state, info);
  }

  /** True when somebody listens. After close() nobody hears anything but that. */
  #emit(type, ...details) {
    return (this.#state !== "closed" || type === "state") && this.#events.emit(type, ...details);
  }
}
