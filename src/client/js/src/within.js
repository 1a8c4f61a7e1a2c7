/** `work(signal)`, or an error once `ms` are over. */
export function within(env, ms, work) {
  const abort = new AbortController();
  return new Promise((resolve, reject) => {
    const limit = env.setTimeout(() => {
      reject(new Error(`no answer within ${ms} ms`));
      abort.abort();
    }, ms);
    const end = (settle) => (value) => {
      env.clearTimeout(limit);
      settle(value);
    };
    Promise.resolve(abort.signal).then(work).then(end(resolve), end(reject));
  });
}

/**
 * Calls `work`, and once more when it has not answered after `ms`: the first answer counts. A request of the first call
 * may hang on a path that died, while a second one finds the new path.
 */
export function askTwice(env, ms, work) {
  return new Promise((resolve, reject) => {
    const ask = () => Promise.resolve().then(work).then(resolve, reject).finally(() => env.clearTimeout(again));
    const again = env.setTimeout(ask, ms);
    ask();
  });
}

/** Retry-After in milliseconds: seconds or an HTTP date (RFC 9110 section 10.2.3); null when absent or neither. */
export function retryAfterMs(value, clock) {
  const text = value?.trim();
  if (!text) return null;
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - clock;
  return Number.isNaN(ms) ? null : Math.max(0, ms);
}
