// Which path the next volatile frame takes: pure, so that a table can say when it changes.

/**
 * `direct` is what is known of the direct path:
 * - `isOpen`: the channel is open, and the other library has answered on it;
 * - `isHidden`: this page or the other one is in the background, where timers come late;
 * - `unheardSince`: since when a frame that was sent waits for a report, or null;
 * - `fullSince`: since when the channel's buffer has not been empty, or null;
 * - `trip`: its round trip in milliseconds, or null while it is not measured;
 * - `heardAt`: when something last came on it;
 * - `notBefore`: it failed, and is not tried again before this time.
 *
 * `relayDelay` is how long a frame takes by the relay, in milliseconds, or null while that is not known. `current` is the
 * path of the frame before. The answer is `{ path, because }`; `because` is the reason for the relay, in one word.
 */
export function choosePath(now, current, direct, relayDelay, timing) {
  const relay = (because) => ({ path: "relay", because });
  if (!direct.isOpen) return relay("closed");
  if (direct.isHidden) return relay("hidden");
  if (silentAt(direct, timing) <= now) return relay("silent");
  if (direct.fullSince !== null && now - direct.fullSince >= timing.directSilence) return relay("full");
  if (now < direct.notBefore) return relay("failed");
  if (direct.trip === null) return relay("unmeasured");
  // Nothing is risked on a channel that does not answer its pings.
  if (current !== "direct" && now - direct.heardAt > 2 * timing.directPing) return relay("unheard");
  // It also spares the relay, so it may be a little slower. Who comes back must be better than who stays.
  const margin = current === "direct" ? timing.directStay : timing.directEnter;
  if (relayDelay !== null && direct.trip / 2 > relayDelay + margin) return relay("slower");
  return { path: "direct", because: null };
}

/** When the direct path counts as silent, if no report comes until then. */
export function silentAt(direct, timing) {
  if (direct.unheardSince === null) return Infinity;
  return direct.unheardSince + timing.directSilence + Math.min(direct.trip ?? 0, timing.directSilence / 2);
}

/** How long to wait after the n-th failure in a row (n = 0, 1, …) before the direct path is tried again. */
export function retryAfter(failures, timing) {
  return Math.min(timing.directRetryMax, timing.directRetry * 2 ** failures);
}
