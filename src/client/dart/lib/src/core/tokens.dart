import '../timing.dart';
import 'clock.dart';

/// One question for a token: a first call of `getToken`, and a second one if
/// the first hangs, as it does on a network that has gone.
final class TokenRequest {
  /// A question that is asked at once. [call] calls `getToken`; one of
  /// [onToken] and [onFailure] follows, unless [cancel] comes first.
  TokenRequest(
    this.id, {
    required Alarms alarms,
    required Timing timing,
    required void Function(int id) call,
    required this.onToken,
    required this.onFailure,
  }) : _call = call {
    _again = alarms.create(_callOnce);
    _limit = alarms.create(() {
      _end();
      onFailure('no token within ${timing.token.inMilliseconds} ms');
    });
    _again.after(timing.tokenAgain.ms);
    _limit.after(timing.token.ms);
    _callOnce();
  }

  /// Its number.
  final int id;

  final void Function(int id) _call;

  /// Receives the token, or null for "nobody is signed in".
  final void Function(String? token) onToken;

  /// Receives why there is none.
  final void Function(String detail) onFailure;

  late final Alarm _again;
  late final Alarm _limit;
  int _unanswered = 0;
  bool _ended = false;

  void _callOnce() {
    _unanswered += 1;
    _call(id);
  }

  /// One of the calls has answered. The first good answer counts.
  void answer(String? token) {
    if (_ended) return;
    _end();
    onToken(token);
  }

  /// One of the calls has failed. The other one may still answer.
  void fail(String detail) {
    if (_ended) return;
    _unanswered -= 1;
    if (_unanswered > 0) return;
    _end();
    onFailure(detail);
  }

  /// No answer is wanted any more.
  void cancel() => _end();

  void _end() {
    _ended = true;
    _again.clear();
    _limit.clear();
  }
}
