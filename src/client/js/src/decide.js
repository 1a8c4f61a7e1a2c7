// What to do next: a table, without timers, sockets or randomness. relay.js carries out what it says.
//
//   decide(event, situation, timing) -> next
//
// next.do      "retry": attempt again after a random time within `wait` ([least, most] in ms)
//              "stop": stay away, in `state`, until connect() is called
//              "ask": ask the relay over HTTP why it refused, because a browser says 1006 and nothing else
//              "nothing": another attempt is on its way already
// next.ordered  the relay named the time, so a page that wakes up does not shorten it
// next.code, next.detail  the reason, for programs and for people

/** What a close code asks of the client; every other code is a network that broke. */
const CLOSES = {
  1002: { stop: "protocol_error" },
  1007: { stop: "invalid_utf8" },
  1008: { wait: "long", code: "policy", detail: "the relay met too many errors or messages" },
  1009: { stop: "message_too_big" },
  1012: { wait: "jitter", code: "restart", detail: "the relay restarts" },
  1013: { code: "overloaded", detail: "the relay is overloaded" },
  4001: { stop: "overwritten" },
  4002: { stop: "disconnected" },
  4003: { wait: "jitter", forceRefresh: true, code: "token_expired", detail: "the session ended with its token" },
  4008: { code: "too_slow", detail: "this device read too slowly" },
  4009: { code: "no_heartbeat", detail: "the relay heard nothing from this device" },
};
const BROKEN = { code: "network", detail: "the connection broke" };

/** Refusals that a fresh token may cure. */
const TOKEN_REFUSALS = new Set([
  "missing_token", "malformed_token", "token_expired", "token_not_yet_valid", "token_revoked",
  "wrong_audience", "wrong_issuer", "bad_signature", "unknown_key",
]);

/** Refusals that stay as they are, whatever this client does. */
const FINAL_REFUSALS = new Set([
  "origin_not_allowed", "not_allowed", "user_disabled", "bad_device", "unsupported_protocol", "bad_request",
]);

/** An `error` about a token that was sent in-band. */
export const isTokenRefusal = (code) => TOKEN_REFUSALS.has(code);

/**
 * situation: `live`: a welcomed link goes on serving; `trying`: the next attempt is on its way or waits for its time;
 * `failures`: attempts in a row that failed.
 */
export function decide(event, situation, timing) {
  switch (event.type) {
    case "closed":
      return afterClose(event, situation, timing);
    case "refused":
      return afterRefusal(event, situation, timing);
    case "failed": // no answer from anywhere: the network is broken, for HTTP too
      return backOff(situation, timing, event);
    case "reconnect":
      // What is on its way already is as good as what starts later.
      return situation.trying ? { do: "nothing" } : { do: "retry", wait: [event.inMs, event.inMs], ordered: true, failures: 0 };
    default:
      throw new TypeError(`not an event: ${event.type}`);
  }
}

/**
 * event: `code`, `reason`; `opened`: the handshake was answered; `welcomed`; `by`: the slot's new holder, if named;
 * `succeeded`: this client opened another socket while this one was alive; `reclaimed`: how long ago it last came back
 * after an overwrite by itself.
 */
function afterClose(event, situation, timing) {
  const { code, reason, by } = event;
  const rule = CLOSES[code] ?? BROKEN;
  const words = { code: rule.code ?? rule.stop, detail: reason || rule.detail };
  if (rule.stop === "overwritten") {
    const byItself = by?.same_client === true || (by === null && event.succeeded);
    // By its own next socket, which is on its way or has failed: nobody else has the slot.
    if (byItself && event.succeeded) return situation.trying ? { do: "nothing" } : backOff(situation, timing, BROKEN);
    // By an attempt of its own that it had given up. Twice is a copy of this client: they would never end.
    if (byItself && event.reclaimed >= timing.reclaim) {
      return { do: "retry", wait: [0, timing.restart], failures: situation.failures + 1, reclaim: true, ...BROKEN };
    }
    return { do: "stop", state: "overwritten", code: "overwritten", detail: "another tab or device has taken over" };
  }
  if (rule.stop && !situation.live) {
    const old = code === 1002 && !event.welcomed;
    return { do: "stop", state: "refused", ...words, code: old ? "unsupported_protocol" : rule.stop, detail: words.detail ?? rule.stop };
  }
  const more = rule.forceRefresh ? { forceRefresh: true } : {};
  if (situation.trying) return { do: "nothing", ...more };
  if (!event.opened) return { do: "ask" };
  if (rule.wait === "long") {
    return { do: "retry", wait: [timing.policy, 2 * timing.policy], ordered: true, failures: situation.failures, ...words };
  }
  // Once at once. When it happens again soon, it is a loop: then with back-off.
  if (rule.wait === "jitter" && situation.failures === 0) return { do: "retry", wait: [0, timing.restart], failures: 1, ...words, ...more };
  return { ...backOff(situation, timing, words), ...more };
}

/** event: the problem document's `status`, `code`, `detail`, `attempt`; `retryAfterMs` or null; `tokenWasFresh`. */
function afterRefusal(event, situation, timing) {
  const { code, detail } = event;
  // Some attempt of ours holds a higher number than the newest: our memory was lost, or the clock fell.
  if (code === "superseded") return { ...backOff(situation, timing, event), ...(situation.failures === 0 && { wait: [0, 0] }) };
  const ofToken = TOKEN_REFUSALS.has(code);
  if (ofToken && !event.tokenWasFresh) {
    return { do: "retry", wait: [0, 0], failures: situation.failures, forceRefresh: true, code, detail };
  }
  // With a connection that still works there is nothing to stop: only its replacement failed.
  if (!situation.live && (ofToken || FINAL_REFUSALS.has(code))) return { do: "stop", state: "refused", code, detail };
  const next = backOff(situation, timing, event);
  if (event.retryAfterMs === null || event.retryAfterMs === undefined) return next;
  const ordered = Math.min(event.retryAfterMs, timing.retryAfterMax);
  return { ...next, wait: next.wait.map((ms) => ms + ordered), ordered: true };
}

/** Full jitter: a whole fleet's clients must not come back together. */
function backOff({ failures }, { backoff, backoffMax }, { code, detail }) {
  return { do: "retry", wait: [0, Math.min(backoffMax, backoff * 2 ** failures)], failures: failures + 1, code, detail };
}
