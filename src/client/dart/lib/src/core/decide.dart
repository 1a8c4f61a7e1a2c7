import '../events.dart';
import '../timing.dart';
import 'handshake.dart';

/// What to do next: a table, without timers, sockets or randomness.
sealed class Next {
  const Next({this.forceRefresh = false});

  /// The next token must be a fresh one.
  final bool forceRefresh;
}

/// Attempt again after a random time from [least] to [most] milliseconds.
final class Retry extends Next {
  /// Attempt again, with [failures] in a row behind.
  const Retry(
    this.least,
    this.most, {
    required this.failures,
    required this.code,
    required this.reason,
    this.isOrdered = false,
    this.takesBack = false,
    super.forceRefresh,
  });

  /// The shortest wait.
  final double least;

  /// The longest wait.
  final double most;

  /// Attempts in a row that failed.
  final int failures;

  /// Why, as a stable word.
  final String code;

  /// The same in words.
  final String reason;

  /// The relay named the time: a network that comes back does not shorten it.
  final bool isOrdered;

  /// It answers an overwrite by this very client.
  final bool takesBack;
}

/// Stay away until `connect()`.
final class Stop extends Next {
  /// Another app has the slot, or the relay refuses this one.
  const Stop(this.code, this.reason, {this.isOverwritten = false});

  /// Why, as a stable word.
  final String code;

  /// The same in words.
  final String reason;

  /// Another app has the slot.
  final bool isOverwritten;
}

/// Ask the relay over HTTP why the handshake failed.
final class Ask extends Next {
  /// The relay may know.
  const Ask();
}

/// The next attempt is on its way already.
final class Nothing extends Next {
  /// Nothing more to do.
  const Nothing({super.forceRefresh});
}

/// What the client knows when it decides.
final class Situation {
  /// A situation.
  const Situation({
    required this.isLive,
    required this.isTrying,
    required this.failures,
  });

  /// A welcomed link goes on serving.
  final bool isLive;

  /// The next attempt is on its way, or waits for its time.
  final bool isTrying;

  /// Attempts in a row that failed.
  final int failures;
}

/// A link that ended.
final class Closed {
  /// A close [code] with the relay's [reason], which may be empty.
  const Closed(
    this.code,
    this.reason, {
    required this.isOpened,
    required this.isWelcomed,
    required this.by,
    required this.hasSuccessor,
    required this.sinceTakenBackMs,
  });

  /// The close code.
  final int code;

  /// The relay's words.
  final String reason;

  /// Its handshake was answered.
  final bool isOpened;

  /// It was welcomed.
  final bool isWelcomed;

  /// The slot's new holder, once the relay has named it.
  final Overwritten? by;

  /// This client opened another socket while this one was alive.
  final bool hasSuccessor;

  /// How long ago this client came back after an overwrite by itself.
  final double sinceTakenBackMs;
}

/// What a close code says: a stable word, words, and what the client does.
typedef _Rule = ({String code, String words, _After after});

enum _After { backOff, jitter, freshToken, longWait, stop, overwritten }

_Rule _rule(int code) => switch (code) {
      1000 || 1001 => (
          code: 'closed',
          words: 'the relay closed the connection',
          after: _After.backOff,
        ),
      1002 => (
          code: 'protocol_error',
          words: 'the two ends do not speak the same protocol',
          after: _After.stop,
        ),
      1007 => (
          code: 'invalid_utf8',
          words: 'a message was not valid UTF-8',
          after: _After.stop,
        ),
      1008 => (
          code: 'policy',
          words: 'the relay met too many errors or messages',
          after: _After.longWait,
        ),
      1009 => (
          code: 'message_too_big',
          words: 'a message was too big for the relay',
          after: _After.stop,
        ),
      1012 => (
          code: 'restart',
          words: 'the relay restarts',
          after: _After.jitter,
        ),
      1013 => (
          code: 'overloaded',
          words: 'the relay is overloaded',
          after: _After.backOff,
        ),
      4001 => (
          code: 'overwritten',
          words: 'another app or tab has taken over',
          after: _After.overwritten,
        ),
      4002 => (
          code: 'disconnected',
          words: 'an operator ended the connection',
          after: _After.stop,
        ),
      4003 => (
          code: 'token_expired',
          words: 'the session ended with its token',
          after: _After.freshToken,
        ),
      4008 => (
          code: 'too_slow',
          words: 'this device read too slowly',
          after: _After.backOff,
        ),
      4009 => (
          code: 'no_heartbeat',
          words: 'the relay heard nothing from this device',
          after: _After.backOff,
        ),
      _ => _broken,
    };

const _Rule _broken =
    (code: 'network', words: 'the connection broke', after: _After.backOff);

/// Words for a close [code] where the relay gives none.
String closeWords(int code) => _rule(code).words;

/// Refusals that a fresh token may cure.
const Set<String> tokenRefusals = {
  'missing_token',
  'malformed_token',
  'token_expired',
  'token_not_yet_valid',
  'token_revoked',
  'wrong_audience',
  'wrong_issuer',
  'bad_signature',
  'unknown_key',
};

/// Refusals that stay as they are, whatever this client does.
const Set<String> _finalRefusals = {
  'origin_not_allowed',
  'user_disabled',
  'bad_device',
  'unsupported_protocol',
  'bad_request',
};

/// A link ended.
Next afterClose(Closed event, Situation situation, Timing timing) {
  final rule = _rule(event.code);
  final reason = event.reason.isEmpty ? rule.words : event.reason;
  final failures = situation.failures;
  final isFresh = rule.after == _After.freshToken;

  if (rule.after == _After.overwritten) {
    return _overwritten(event, situation, timing);
  }
  if (rule.after == _After.stop && !situation.isLive) {
    final isOld = event.code == 1002 && !event.isWelcomed;
    return Stop(isOld ? 'unsupported_protocol' : rule.code, reason);
  }
  if (situation.isTrying) return Nothing(forceRefresh: isFresh);
  if (!event.isOpened) return const Ask();
  final policyMs = timing.policy.ms;
  return switch (rule.after) {
    _After.longWait => Retry(
        policyMs,
        2 * policyMs,
        failures: failures,
        code: rule.code,
        reason: reason,
        isOrdered: true,
      ),
    // Once at once. When it happens again soon, it is a loop: then with
    // back-off.
    _After.jitter || _After.freshToken when failures == 0 => Retry(
        0,
        timing.restart.ms,
        failures: 1,
        code: rule.code,
        reason: reason,
        forceRefresh: isFresh,
      ),
    _ => backOff(
        situation,
        timing,
        rule.code,
        reason,
        forceRefresh: isFresh,
      ),
  };
}

Next _overwritten(Closed event, Situation situation, Timing timing) {
  final by = event.by;
  final byItself = by == null ? event.hasSuccessor : by.sameClient ?? false;
  if (byItself && event.hasSuccessor) {
    // By its own next socket, which is on its way or has failed: nobody else
    // has the slot.
    if (situation.isTrying) return const Nothing();
    return backOff(situation, timing, _broken.code, _broken.words);
  }
  // By an attempt of its own that it had given up. Twice is a copy of this
  // client: the two would never end.
  if (byItself && event.sinceTakenBackMs >= timing.takeBack.ms) {
    return Retry(
      0,
      timing.restart.ms,
      failures: situation.failures + 1,
      code: _broken.code,
      reason: _broken.words,
      takesBack: true,
    );
  }
  return Stop('overwritten', closeWords(4001), isOverwritten: true);
}

/// The relay refused a handshake.
Next afterRefusal(
  HandshakeFailure failure,
  Situation situation,
  Timing timing, {
  required bool tokenWasFresh,
}) {
  final HandshakeFailure(:code, :detail, :retryAfterMs) = failure;
  final failures = situation.failures;
  // An attempt of ours holds a higher number than the newest one: our memory
  // was lost, or the clock fell.
  if (code == 'superseded' && failures == 0) {
    return Retry(0, 0, failures: 1, code: code, reason: detail);
  }
  final ofToken = tokenRefusals.contains(code);
  if (ofToken && !tokenWasFresh) {
    return Retry(
      0,
      0,
      failures: failures,
      code: code,
      reason: detail,
      forceRefresh: true,
    );
  }
  // With a connection that still works there is nothing to stop: only its
  // replacement failed.
  if (!situation.isLive && (ofToken || _finalRefusals.contains(code))) {
    return Stop(code, detail);
  }
  if (retryAfterMs == null) return backOff(situation, timing, code, detail);
  final max = timing.retryAfterMax.ms;
  final ordered = retryAfterMs < max ? retryAfterMs : max;
  return backOff(situation, timing, code, detail, orderedMs: ordered);
}

/// Full jitter: the clients of a whole fleet must not come back together.
Retry backOff(
  Situation situation,
  Timing timing,
  String code,
  String reason, {
  bool forceRefresh = false,
  double? orderedMs,
}) {
  final failures = situation.failures;
  final grown = timing.backoff.ms * (1 << (failures < 20 ? failures : 20));
  final max = timing.backoffMax.ms;
  final wait = grown < max ? grown : max;
  return Retry(
    orderedMs ?? 0,
    (orderedMs ?? 0) + wait,
    failures: failures + 1,
    code: code,
    reason: reason,
    isOrdered: orderedMs != null,
    forceRefresh: forceRefresh,
  );
}
