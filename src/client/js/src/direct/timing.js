/** Times in milliseconds, beside those of the rest; `options.timing` overrides single ones. */
export const TIMING = {
  directAnswer: 3_000, //  how long the desktop waits for the answer to its offer: then there is no direct path
  directOpen: 10_000, //   from the answer to an open channel
  directReport: 50, //     how often what came on the direct path is reported
  directSilence: 150, //   how long a direct frame may stay unreported beyond the round trip, and the channel's buffer full
  directSettle: 100, //     how late a direct frame may arrive that nothing was heard of
  directPing: 1_000, //    how often the direct path is measured
  directDead: 5_000, //    how long it may be silent altogether: then it is arranged anew
  directRetry: 2_000, //   the pause after a failure doubles from the first to the second of these
  directRetryMax: 60_000,
  directStable: 30_000, // a direct path that lived this long forgets earlier failures
  directEnter: 10, //      how much slower than the relay it may be, to be taken
  directStay: 40, //       and to be kept
  poll: 5, //             how often the channel's buffer is looked at
};
