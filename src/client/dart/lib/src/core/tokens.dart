import '../timing.dart';
import 'affinity.dart';
import 'clock.dart';

/// The app's tokens: asks for one under a time limit, knows the user of the
/// last one, and when the next one is due.
final class Tokens {
  /// [call] calls the app's `getToken` for a request.
  Tokens(
    this._alarms,
    this._timing,
    this._random, {
    required void Function(int request, {required bool forceRefresh}) call,
    required void Function() onRefreshDue,
  })  : _call = call,
        _clock = _alarms.clock {
    _refresh = _alarms.create(() {
      _refreshedAt = _clock.now;
      onRefreshDue();
    });
  }

  final Alarms _alarms;
  final Timing _timing;
  final Clock _clock;
  final double Function() _random;
  final void Function(int request, {required bool forceRefresh}) _call;
  final Map<int, TokenRequest> _open = {};
  late final Alarm _refresh;
  double _refreshedAt = double.negativeInfinity;
  int _last = 0;

  /// `UID` or `TENANT/UID` of the last token that could be read.
  String? user;

  /// Asks for a token. One of [onToken] and [onFailure] follows, unless the
  /// request is cancelled.
  TokenRequest ask({
    required bool forceRefresh,
    required void Function(String? token) onToken,
    required void Function(String detail) onFailure,
  }) {
    final id = ++_last;
    return _open[id] = TokenRequest(
      _alarms,
      _timing,
      call: () => _call(id, forceRefresh: forceRefresh),
      onToken: onToken,
      onFailure: onFailure,
      onEnd: () => _open.remove(id),
    )..start();
  }

  /// A call for [request] has answered.
  void onToken(int request, String? token) => _open[request]?.answer(token);

  /// A call for [request] has failed.
  void onFailure(int request, String detail) => _open[request]?.fail(detail);

  /// Whether [token] belongs to another user than the one before.
  bool isOfAnother(String token) {
    final owner = userOf(token);
    return owner != null && user != null && owner != user;
  }

  /// The session ends at [expiresAt]: a refresh is due in time.
  void refreshBefore(DateTime expiresAt) {
    // A provider may give tokens that live shorter than the relay's warning
    // time: then not again and again at once.
    final again = _clock.now - _refreshedAt < 30000;
    final left = expiresAt.millisecondsSinceEpoch - _clock.unixMs.toDouble();
    _refresh.after(again ? (left / 2 > 5000 ? left / 2 : 5000) : 0);
  }

  /// The last refresh failed. Close code 4003 ends the attempts.
  void refreshAgain() => _refresh.after(5000 + _random() * 10000);

  /// No refresh is due.
  void stopRefresh() => _refresh.clear();
}

/// One question for a token: a first call of `getToken`, and a second one if
/// the first hangs, as it does on a network that has gone.
final class TokenRequest {
  /// A question that is not asked yet.
  TokenRequest(
    Alarms alarms,
    this._timing, {
    required void Function() call,
    required void Function(String? token) onToken,
    required void Function(String detail) onFailure,
    required void Function() onEnd,
  })  : _call = call,
        _onToken = onToken,
        _onFailure = onFailure,
        _onEnd = onEnd {
    _again = alarms.create(_callOnce);
    _limit = alarms.create(() {
      cancel();
      _onFailure('no token within ${_timing.token.inMilliseconds} ms');
    });
  }

  final Timing _timing;
  final void Function() _call;
  final void Function(String? token) _onToken;
  final void Function(String detail) _onFailure;
  final void Function() _onEnd;
  late final Alarm _again;
  late final Alarm _limit;
  int _unanswered = 0;

  /// Asks.
  void start() {
    _again.after(_timing.tokenAgain.ms);
    _limit.after(_timing.token.ms);
    _callOnce();
  }

  void _callOnce() {
    _unanswered += 1;
    _call();
  }

  /// One of the calls has answered. The first answer counts.
  void answer(String? token) {
    cancel();
    _onToken(token);
  }

  /// One of the calls has failed. The other one may still answer.
  void fail(String detail) {
    _unanswered -= 1;
    if (_unanswered > 0) return;
    cancel();
    _onFailure(detail);
  }

  /// No answer is wanted any more.
  void cancel() {
    _again.clear();
    _limit.clear();
    _onEnd();
  }
}
