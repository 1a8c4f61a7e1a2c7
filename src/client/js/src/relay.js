import { relayAddress } from "./address.js";
import { Attempts } from "./attempt.js";
import { isTokenRefusal } from "./decide.js";
import { environment, randomHex } from "./environment.js";
import { SendError } from "./errors.js";
import { Events } from "./events.js";
import { NamedClient, TabClient, userOf } from "./identity.js";
import { Links, RELIABLE } from "./links.js";
import { Pacing } from "./pacing.js";
import { PageEvents } from "./page.js";
import { Sender } from "./sender.js";
import { TIMING } from "./timing.js";
import { Tokens } from "./tokens.js";

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
  #events = new Events();
  #page;
  #log;
  #state = "connecting";

  #links = new Links();
  #attempts;
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
    this.#attempts = new Attempts(env, this.#timing, this.#links, this.#tokens, this.#client, { address: this.#address, device }, {
      state: () => this.#state,
      setState: (state, info) => this.#setState(state, info),
      emit: (type, detail) => this.#emit(type, detail),
      stop: (...why) => this.#giveUp(...why),
      refused: (...why) => this.#refused(...why),
      accepts: (token) => this.#accepts(token),
      flush: () => this.#sender.flush(),
      log: this.#log,
      onFrame: (...frame) => this.#onFrame(...frame),
      onControl: (...message) => this.#onControl(...message),
      onGone: (...end) => this.#onGone(...end),
    });
    if (options.direct) this.#startDirect();
    this.#connect();
  }

  get state() { return this.#state; }
  get client() { return this.#client.id; }
  get welcome() { return this.#links.current?.welcome ?? null; }
  get peer() { return this.#peer; }
  get expiresAt() { return this.#expiresAt; }
  get backplane() { return this.#backplane; }
  get rtt() { return this.#links.current?.rtt ?? null; }
  get delay() { return { up: this.#links.current?.delay.up ?? null, down: this.#links.current?.delay.down ?? null, direct: this.#direct?.delay ?? null }; }
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
      this.#attempts.forgive();
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
    const since = this.#env.now() - this.#attempts.beganAt;
    if (this.#suspended || (this.#state === "signed_out" && since >= this.#timing.wake)) this.#connect();
    else if (this.#links.current) this.#links.current.probe();
    else this.#attempts.wake();
  }

  /** Ends the connection for good. */
  close() {
    if (this.#state === "closed") return;
    this.#page.stop();
    this.#stop("closed", {});
    this.#direct?.stop();
  }

  // ---- Connecting -----------------------------------------------------------------------------------------------

  #connect() {
    this.#suspended = false;
    this.#attempts.begin();
  }

  /** Online, the app says that the token may be another one. */
  async #checkUser() {
    if (this.#checking) return;
    this.#checking = true;
    this.#checkLater = false;
    const link = this.#links.current;
    const token = await this.#tokens.ask(false).catch(() => undefined);
    this.#checking = false;
    if (token !== undefined && link === this.#links.current && this.#state === "online") this.#accepts(token);
  }

  /** Is it this user's? Null: nobody is signed in any more. */
  #accepts(token) {
    if (token === null) this.signedOut();
    else if (this.#tokens.isOfAnother(token)) this.#connectAnew(userOf(token));
    else return true;
    return false;
  }

  /** Nothing of one user's may reach another user's devices: not the link, and not what waits to be sent. */
  #connectAnew(user) {
    const why = "another user has signed in";
    const wasOnline = this.#links.current !== null;
    this.#tokens.user = user;
    this.#dropLinks();
    this.#dropQueue(why);
    this.#setState("connecting");
    if (wasOnline) this.#emit("close", { code: 1000, reason: why, willReconnect: true });
    if (ALIVE.has(this.#state)) this.#connect();
  }

  #onGone(link, code, reason) {
    this.#log("closed", code, reason);
    const links = this.#links;
    if (link === links.old) return links.endOld();
    const wasCurrent = link === links.current;
    if (!wasCurrent && link !== links.next) return;
    if (wasCurrent) {
      links.current = null;
      this.#direct?.setPair(null, null);
      this.#sender.dropVolatile();
      this.#tokens.stop();
      links.endOld();
    } else {
      links.next = null;
    }
    const did = this.#attempts.afterClose(link, code, reason, wasCurrent);
    if (did === null) return;
    if (wasCurrent) this.#emit("close", { code, reason, willReconnect: did !== "stop" });
    this.#sender.flush(); // what the failed replacement held back may go on
  }

  /** Coming back is wrong: decide.js said so. */
  #giveUp(next, by, more) {
    this.#stop(next.state, next);
    if (next.state === "overwritten") this.#emit("overwritten", by);
    else this.#refused(next.code, next.detail, true, more);
  }

  #refused(code, detail, final, { status = 0, retryAfterMs = null } = {}) {
    this.#emit("refused", { status, code, detail, retryAfterMs, final });
  }

  #stop(state, { code, detail }) {
    this.#suspended = this.#attempts.forceRefresh = false;
    this.#dropLinks();
    this.#dropQueue(`it is ${state}`);
    this.#setState(state, state === "closed" ? {} : { code, detail });
  }

  /** Ends all links, and voids what any attempt still awaits. */
  #dropLinks() {
    this.#attempts.stop();
    this.#tokens.stop();
    this.#direct?.setPair(null, null);
    this.#links.endAll();
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
    if (this.#links.current || !address.includes(`//${this.#address.host}`)) return;
    this.#links.endNext();
    this.#attempts.stop();
    this.#attempts.refuse("not_allowed", `the page's Content-Security-Policy lacks ${this.#address.host} in connect-src`, false);
  }

  // ---- Receiving ------------------------------------------------------------------------------------------------

  #onFrame(link, streamId, bytes) {
    this.#attempts.lookAtClock();
    if (streamId >= RELIABLE) return this.#links.inOrder(link, () => this.#emit("frame", streamId, bytes));
    if (!this.#links.isFresh(link, streamId)) return;
    if (this.#direct && !this.#direct.onRelayFrame(streamId, bytes, link !== this.#links.current)) return;
    this.#emit("frame", streamId, bytes);
  }

  #onControl(link, message) {
    this.#attempts.lookAtClock();
    switch (message.type) {
      case "welcome":
        return this.#onWelcome(link, message);
      case "message":
        return this.#links.inOrder(link, () => this.#deliver(message));
      case "acked":
        return this.#sender.acked(message.id);
      case "overwritten":
        // What waited for this socket came before this message; close 4001 follows and says nothing new.
        link.overwrittenBy = message.by;
        return link.fail(4001, "overwritten");
      case "error":
        return this.#onError(link, message);
    }
    if (link !== this.#links.current) return;
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
      case "reconnect":
        this.#attempts.onReconnect(message.in_ms);
        return this.#emit("reconnect", message);
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
    this.#links.endOld();
    if (link !== this.#links.next) return; // a listener had enough
    this.#links.promote();
    this.#attempts.onWelcome();
    this.#sender.messageBytes = welcome.limits.message_bytes;
    this.#tokens.stop();
    this.#expiresAt = welcome.expires_at;
    this.#backplane = "up"; // the relay reports when it is not
    this.#setState("online");
    this.#emit("welcome", welcome);
    this.#setPeer(welcome.peer && { device: welcome.device === "desktop" ? "mobile" : "desktop", ...welcome.peer });
    this.#sender.goOn();
    if (this.#checkLater) this.#checkUser();
  }

  /** Hands a message to the listeners; what the other device waits for is answered then, and not before. */
  #deliver(message) {
    const heard = this.#emit("message", message);
    if (!message.ack || !heard || !this.#links.current?.has("ack")) return;
    this.#sender.acknowledge(message.id);
  }

  #onError(link, message) {
    if (this.#direct?.isOwn(message)) return;
    this.#sender.failed(message);
    if (link !== this.#links.current) return;
    this.#emit("error", message);
    if (message.code === "wrong_user") this.#connectAnew(null);
    else if (isTokenRefusal(message.code)) this.#tokens.refreshAgain(() => this.#refresh());
  }

  // ---- Token ----------------------------------------------------------------------------------------------------

  async #refresh() {
    const link = this.#links.current;
    let token;
    try {
      token = await this.#tokens.ask(true);
    } catch (cause) {
      if (link === null || link !== this.#links.current) return;
      this.#emit("error", { code: "token_unavailable", detail: String(cause?.message ?? cause) });
      if (link === this.#links.current) this.#tokens.refreshAgain(() => this.#refresh());
      return;
    }
    if (link !== null && link === this.#links.current && this.#accepts(token)) link.say({ type: "auth", token });
  }

  // ---- Sending --------------------------------------------------------------------------------------------------

  #checkAlive() {
    if (!ALIVE.has(this.#state)) throw new SendError("not_connected", `the relay connection is ${this.#state}`);
  }

  /** Which way what is sent takes now; null without a connection. */
  #route() {
    if (!this.#links.current) return null;
    // Nothing reliable from the barrier before the next socket until its welcome: after the claim the relay drops what
    // still comes on this one.
    return { link: this.#links.current, path: this.#direct?.route(this.#links.current) ?? this.#links.current, held: this.#attempts.isMoving };
  }

  /** A file of its own, so that pages without the direct path load nothing of it. */
  async #startDirect() {
    try {
      const { Direct } = await import("./duorelay-direct.js");
      if (this.#state === "closed") return;
      this.#direct = Direct.of({ Pacing, randomHex }, this.#env, this.#options.timing, {
        link: () => this.#links.current,
        emit: (...event) => this.#emit(...event),
        flush: () => this.#sender.flush(),
      });
      this.#direct?.setPair(this.#links.current?.welcome, this.#peer);
    } catch (cause) {
      this.#log("no direct path", cause);
    }
  }

  // ---- Events ---------------------------------------------------------------------------------------------------

  #setPeer(peer) {
    this.#direct?.setPair(this.#links.current?.welcome, peer);
    if (peer?.connection === this.#peer?.connection) return;
    this.#peer = peer ?? null;
    this.#emit("peer", this.#peer);
  }

  #setState(state, info = {}) {
    if (this.#state === "closed" || (state === this.#state && state !== "waiting")) return;
    this.#state = state;
    this.#log(state, info);
    if (state !== "online") this.#setPeer(null); // no notice comes any more
    this.#emit("state", state, info);
  }

  /** True when somebody listens. After close() nobody hears anything but that. */
  #emit(type, ...details) {
    return (this.#state !== "closed" || type === "state") && this.#events.emit(type, ...details);
  }
}
