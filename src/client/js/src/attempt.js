import { attemptUrls, isMixedContent } from "./address.js";
import { decide } from "./decide.js";
import { affinityOf, userOf } from "./identity.js";
import { Link } from "./link.js";
import { retryAfterMs, within } from "./within.js";

/**
 * When to try next, and each attempt: a token, a socket, and where that fails the reason why. decide.js has the table of
 * what follows. `owner` is relay.js: `state()`, `setState`, `emit`, `stop`, `refused`, `flush`, `log`, what a link
 * calls, and `accepts(token)`: is it this user's?
 *
 * Each attempt has a number: what an earlier one still awaits is void.
 */
export class Attempts {
  /** The next one asks for a fresh token. */
  forceRefresh = false;
  /** A replacement is due and waits for the current link's barrier. */
  atBarrier = false;
  /** When the last one began. */
  beganAt = -Infinity;

  #env;
  #timing;
  #links;
  #tokens;
  #client;
  #target;
  #owner;

  #number = 0;
  #failures = 0;
  #unwelcomed = 0; // attempts in a row without a welcome
  #blocked = 0; //    handshakes in a row that failed although the relay would have taken them
  #retry = null;
  #retryAt = Infinity;
  #retryIsOrdered = false;
  #reclaimedAt = -Infinity;

  /** `target` is the relay's `address`, and the `device` to be. */
  constructor(env, timing, links, tokens, client, target, owner) {
    this.#env = env;
    this.#timing = timing;
    this.#links = links;
    this.#tokens = tokens;
    this.#client = client;
    this.#target = target;
    this.#owner = owner;
  }

  /** Is another link on its way? Nothing reliable is sent meanwhile. */
  get isMoving() {
    return this.#links.next !== null || this.atBarrier;
  }

  /** Tries now. */
  async begin() {
    const owner = this.#owner;
    const links = this.#links;
    this.#clearRetry();
    this.beganAt = this.#env.now();
    const number = ++this.#number;
    // Nobody is signed in until getToken says otherwise: no state that comes and goes.
    if (!links.current && owner.state() !== "signed_out") owner.setState("connecting");
    const { forceRefresh } = this;
    let token;
    try {
      token = await this.#tokens.ask(forceRefresh);
    } catch (cause) {
      if (number !== this.#number) return;
      const failure = { code: "token_unavailable", detail: String(cause?.message ?? cause) };
      owner.emit("error", failure);
      if (number === this.#number) this.#carryOut(this.#decide({ type: "failed", ...failure }));
      return;
    }
    if (number !== this.#number) return;
    if (!owner.accepts(token)) return;
    this.#tokens.user = userOf(token);
    if (links.current) {
      // The relay drops what reaches the other device behind the new socket's claim. What was sent here last may still be
      // on its way then, through another instance. So nothing reliable leaves from now on, and no socket opens before the
      // old one's relay has handed on the rest.
      this.atBarrier = true;
      await links.current.barrier(this.#timing.barrier);
      this.atBarrier = false;
      if (number !== this.#number) return owner.flush();
    } else {
      owner.setState("connecting");
    }
    this.#open(token, forceRefresh);
  }

  #open(token, forceRefresh) {
    const { address, device } = this.#target;
    if (isMixedContent(address, this.#env.location)) {
      return this.refuse("not_allowed", "a page by https may not open a WebSocket without TLS: use wss://", forceRefresh);
    }
    const urls = attemptUrls(address, {
      device,
      client: this.#client.id,
      attempt: this.#client.attempts.next(this.#env.clock()),
      // Twice without a welcome, the instance that a balancer chooses by it may be full or leaving.
      affinity: this.#tokens.user !== null && this.#unwelcomed < 2 ? affinityOf(this.#tokens.user) : undefined,
    });
    this.#unwelcomed += 1;
    this.#owner.log("attempt", this.#number);
    try {
      this.#links.next = new Link(urls.socket, token, this.#timing, this.#env, this.#owner);
      this.#links.next.attempt = { number: this.#number, token, forceRefresh, url: urls.session };
    } catch (cause) {
      // The URL was looked at before: a SyntaxError is about what cannot stand in Sec-WebSocket-Protocol. Anything else is
      // a veto, which has a name of its own in each browser.
      const code = token === "" ? "missing_token" : cause?.name === "SyntaxError" ? "malformed_token" : "not_allowed";
      return this.refuse(code, String(cause), forceRefresh);
    }
    if (this.#links.current) this.#links.current.succeeded = true;
  }

  /** A link ended, the current one or the next: does what follows. The answer is decide.js's, or null: nobody need know. */
  afterClose(link, code, reason, wasCurrent) {
    if (link.stable) this.#failures = 0;
    const next = this.#decide({
      type: "closed",
      code,
      reason,
      by: link.overwrittenBy,
      opened: link.opened,
      welcomed: link.welcome !== null,
      succeeded: link.succeeded,
      reclaimed: this.#env.now() - this.#reclaimedAt,
    }, wasCurrent && this.#retry === null && this.#number > link.attempt.number);
    if (next.do === "nothing" && code === 4001) return null; // still online: the next socket's welcome is a moment away
    if (next.do === "stop") this.#owner.stop(next, link.overwrittenBy);
    else if (next.do === "ask") this.#askWhy(link.attempt);
    else this.#carryOut(next);
    return next.do;
  }

  /** The relay asks for a move. */
  onReconnect(inMs) {
    const next = this.#decide({ type: "reconnect", inMs });
    if (next.do === "retry") this.#carryOut(next);
  }

  onWelcome() {
    this.#unwelcomed = this.#blocked = 0;
    this.forceRefresh = false;
  }

  /** The app wants it: earlier failures do not count. */
  forgive() {
    this.#failures = 0;
  }

  /** The network changed, or the page is shown again. */
  wake() {
    const since = this.#env.now() - this.beganAt;
    if (this.#retry !== null && !this.#retryIsOrdered) {
      this.#failures = 0; // of a network that is another one now
      this.#retryIn({ wait: [0, 0], code: "wake", detail: "the network is back" }, Math.max(0, this.#timing.wake - since));
    } else if (this.#owner.state() === "connecting" && !this.#links.next?.opened && since >= this.#timing.wake) {
      // It may hang on the path that was left: the token, the handshake, the question why it failed. The relay drops the
      // handshake if it arrives after its successor.
      this.#links.endNext();
      this.begin();
    }
  }

  /** A hidden page's timers may be a minute late; what arrives meanwhile shows the time too. */
  lookAtClock() {
    if (this.#env.now() >= this.#retryAt) this.begin();
  }

  /** Voids what any attempt still awaits. */
  stop() {
    this.#number += 1;
    this.#clearRetry();
  }

  /** A handshake ended before it opened, and the browser does not say why: the relay does, over HTTP. */
  async #askWhy({ number, token, forceRefresh, url }) {
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
    if (number !== this.#number) return;
    if (event.type === "refused") return this.refuse(event.code, event.detail, forceRefresh, event);
    this.#blocked = event.code === "handshake" ? this.#blocked + 1 : 0;
    if (this.#blocked >= 2) {
      event.code = "upgrade_blocked";
      event.detail = "the relay answers over HTTP, but something between here and it does not let WebSockets through";
      this.#owner.refused(event.code, event.detail, false);
    }
    if (number === this.#number) this.#carryOut(this.#decide(event));
  }

  /** The relay, the browser or a policy refuses. */
  refuse(code, detail, tokenWasFresh, more = {}) {
    this.#blocked = 0;
    this.#client.attempts.goAbove(more.attempt);
    const next = this.#decide({ ...more, type: "refused", code, detail, tokenWasFresh });
    if (next.do === "stop") return this.#owner.stop(next, null, more);
    const number = this.#number;
    this.#owner.refused(code, detail, false, more);
    if (number === this.#number) this.#carryOut(next);
  }

  #decide(event, trying = this.isMoving) {
    return decide(event, { live: this.#links.current !== null, trying, failures: this.#failures }, this.#timing);
  }

  #carryOut(next) {
    if (next.forceRefresh) this.forceRefresh = true;
    if (next.do === "nothing") {
      if (!this.#links.current) this.#owner.setState("connecting");
      return;
    }
    this.#failures = next.failures;
    if (next.reclaim) this.#reclaimedAt = this.#env.now();
    const [least, most] = next.wait;
    this.#retryIn(next, least + this.#env.random() * (most - least));
  }

  #retryIn({ ordered = false, code, detail }, ms) {
    if (this.#owner.state() === "closed") return; // a listener had enough
    this.stop();
    this.#retryIsOrdered = ordered;
    this.#retryAt = this.#env.now() + ms;
    this.#retry = this.#env.setTimeout(() => this.begin(), ms);
    if (!this.#links.current) this.#owner.setState("waiting", { retryInMs: ms, code, detail });
  }

  #clearRetry() {
    this.#env.clearTimeout(this.#retry);
    this.#retry = null;
    this.#retryAt = Infinity;
  }
}
