/// The times of a connection. The defaults suit a phone; tests shorten single
/// ones.
final class Timing {
  /// The default times, except for those that are given.
  const Timing({
    this.attempt = const Duration(seconds: 10),
    this.tokenAgain = const Duration(seconds: 3),
    this.token = const Duration(seconds: 15),
    this.session = const Duration(seconds: 10),
    this.backoff = const Duration(milliseconds: 500),
    this.backoffMax = const Duration(seconds: 30),
    this.restart = const Duration(seconds: 1),
    this.policy = const Duration(seconds: 30),
    this.retryAfterMax = const Duration(minutes: 5),
    this.wake = const Duration(seconds: 1),
    this.takeBack = const Duration(minutes: 10),
    this.stable = const Duration(seconds: 10),
    this.ping = const Duration(seconds: 10),
    this.silence = const Duration(seconds: 15),
    this.busyPing = const Duration(seconds: 2),
    this.busySilence = const Duration(milliseconds: 2500),
    this.barrier = const Duration(seconds: 1),
    this.linger = const Duration(seconds: 3),
    this.pressure = const Duration(seconds: 3),
    this.ack = const Duration(seconds: 10),
  });

  /// From opening a socket to its `welcome`.
  final Duration attempt;

  /// After this time an unanswered `getToken` is called a second time: its
  /// first call may hang on a network that has gone.
  final Duration tokenAgain;

  /// How long both calls of `getToken` may take together.
  final Duration token;

  /// How long the relay may take to explain a handshake that failed.
  final Duration session;

  /// Full jitter: a random time up to `backoff * 2^failures`.
  final Duration backoff;

  /// The most that the back-off grows to.
  final Duration backoffMax;

  /// The clients of a restarted relay come back spread over this time.
  final Duration restart;

  /// After close code 1008 the client waits one to two times this long.
  final Duration policy;

  /// A `Retry-After` counts up to here.
  final Duration retryAfterMax;

  /// A network that changes again and again causes at most one attempt in this
  /// time.
  final Duration wake;

  /// An overwrite by this very client is answered once in this time.
  final Duration takeBack;

  /// A connection that lived this long forgets earlier failures.
  final Duration stable;

  /// How often a quiet connection asks for a sign of life, and measures the
  /// round trip.
  final Duration ping;

  /// How long a quiet connection waits for that sign.
  final Duration silence;

  /// The same as [ping] while frames flow.
  final Duration busyPing;

  /// The same as [silence] while frames flow: with [busyPing] it finds a dead
  /// path in 4.5 s.
  final Duration busySilence;

  /// How long a move waits for the old relay to hand on what it has taken.
  final Duration barrier;

  /// How long the old socket may deliver its rest after a hand-over.
  final Duration linger;

  /// How long a report of pressure holds without being repeated.
  final Duration pressure;

  /// How long an acknowledgement may take where the caller names no time.
  final Duration ack;
}

/// A duration in milliseconds, with its fraction.
extension Milliseconds on Duration {
  /// This duration in milliseconds.
  double get ms => inMicroseconds / 1000;
}
