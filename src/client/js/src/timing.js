/** Times in milliseconds; `options.timing` overrides single ones. */
export const TIMING = {
  attempt: 10_000, //      from opening a socket to its welcome
  token: 15_000, //        getToken
  tokenAgain: 3_000, //    getToken is called a second time: its own request may hang on a path that died
  session: 10_000, //      asking why a handshake was refused
  backoff: 500, //         full jitter: random(0, min(backoffMax, backoff * 2 ** failures))
  backoffMax: 30_000,
  restart: 1_000, //       "at once, with jitter" spreads a whole instance's clients over this time
  policy: 30_000, //       the long back-off: random(1, 2) times this
  retryAfterMax: 300_000, // a Retry-After is believed up to here
  wake: 1_000, //          a page that wakes up again and again tries at most this often
  reclaim: 600_000, //     an overwrite by this very client is answered once in this time
  stable: 10_000, //       a connection that lived this long forgets earlier failures
  ping: 10_000, //         how often a ping asks for a sign of life (and measures the round trip)
  silence: 15_000, //      how long it may stay unanswered: then the path is dead
  activePing: 1_500, //    the same two while frames flow
  activeSilence: 2_500,
  barrier: 1_000, //       how long a move waits for the old relay to hand on what it was sent
  linger: 3_000, //        how long the old socket may deliver its rest after a hand-over
  pressure: 3_000, //      how long a `pressure` high holds without being repeated
  ack: 10_000, //          how long `send(…, { ack: true })` waits for its answer
  report: 500, //          how late a message that was read may be reported
  poll: 5, //              browsers have no "drained" event: how often bufferedAmount is looked at
};
